"""Files by path or URI: atomic put, listing, and reading back what is already done.

Knows pyarrow.fs (local paths, file://, s3://, gs://). Knows nothing of clips or training. A path without a scheme is a
local path. Whatever is not complete has a name that starts with a dot, and no reader here looks at such names.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs


def absolute(uri: str) -> str:
    """A local path made absolute, without file://; any other URI as it is. Two names of one place become one."""
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    return uri.rstrip("/") if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def is_local(uri: str) -> bool:
    """Whether the URI names a path on this machine."""
    return "://" not in absolute(uri)


def join(uri: str, *names: str) -> str:
    """The URI of a file or a folder below another."""
    return "/".join([uri.rstrip("/"), *names])


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """File system of a path or URI, and the path in it. Raises ValueError for a scheme that pyarrow cannot open."""
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    try:
        return pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"cannot open {uri}: {error}; use a local path, s3://, gs:// or hdfs://") from error


def put(uri: str, data: bytes) -> None:
    """Write a file completely or not at all, under a temporary name that is then renamed. Replaces an existing file."""
    files, path = filesystem(uri)
    folder, name = path.rsplit("/", 1)
    files.create_dir(folder, recursive=True)
    aside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        with files.open_output_stream(aside) as stream:
            stream.write(data)
        if is_local(uri):  # a machine that loses its power could keep the name without the data
            sync(aside)
        files.move(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(aside)
        raise


def sync(path: str) -> None:
    """Wait until what was written to a local file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(uri: str) -> bytes | None:
    """Read the bytes of a file; None when there is no such file."""
    if not exists(uri):
        return None
    files, path = filesystem(uri)
    with files.open_input_stream(path) as stream:
        return stream.read()


def exists(uri: str) -> bool:
    """Whether there is a file of this name."""
    files, path = filesystem(uri)
    return files.get_file_info(path).type == pyarrow.fs.FileType.File


def put_changed(uri: str, data: bytes) -> None:
    """Write a file unless it already holds these bytes, so that repeating a finished job changes no file."""
    if read(uri) != data:
        put(uri, data)


def put_json(uri: str, value: Any) -> None:
    """Write JSON unless the file already holds the same."""
    put_changed(uri, (json.dumps(value, indent=2) + "\n").encode())


def read_json(uri: str) -> Any:
    """Read a JSON file; None when there is no such file. Raises ValueError when it is not JSON."""
    data = read(uri)
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{uri} is not JSON ({error}); it was not written by these jobs") from error


def list_files(uri: str, suffixes: tuple[str, ...]) -> list[str]:
    """URIs of all complete files below a folder that end in one of the suffixes (any case), sorted."""
    files, root = filesystem(uri)
    infos = files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True))
    below = [info.path[len(root) :].lstrip("/") for info in infos if info.type == pyarrow.fs.FileType.File]
    kept = [name for name in below if name.lower().endswith(suffixes) and "/." not in f"/{name}"]
    return [join(absolute(uri), name) for name in sorted(kept)]


def scan(uri: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield these columns, and read no others, of all Parquet files below a folder, some thousand rows at a time."""
    files, _ = filesystem(uri)
    paths = [filesystem(name)[1] for name in list_files(uri, (".parquet",))]
    dataset = pyarrow.dataset.dataset(paths, schema=schema, filesystem=files, format="parquet")
    for batch in dataset.to_batches():
        yield pa.Table.from_batches([batch])


def upload(folder: Path, uri: str) -> None:
    """Copy a local folder to a URI, replacing files of the same names."""
    files, path = filesystem(uri)
    pyarrow.fs.copy_files(str(folder), path, destination_filesystem=files)


def download(uri: str, folder: Path) -> Path:
    """Copy the files below a URI to a new local folder; returns it."""
    files, path = filesystem(uri)
    folder.mkdir(parents=True)
    pyarrow.fs.copy_files(path, str(folder), source_filesystem=files)
    return folder


def remove(uri: str) -> None:
    """Delete a file, if there is one."""
    if exists(uri):
        files, path = filesystem(uri)
        files.delete_file(path)
