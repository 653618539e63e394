"""Files by path or URI: one absolute name for each place, atomic put, listing, and reading back what is already done.

pyarrow.fs opens local paths, file://, s3:// and gs://; the sources also open fsspec's chains of URLs. A path without a
scheme is local. Incomplete files have names that start with a dot, and no reader here looks at these. Faults of the
storage itself are retried (patience.py).
"""

import contextlib
import functools
import json
import os
import posixpath
import re
import shutil
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

from cinemo.errors import redact
from pipelines.core.patience import patient, retried

_SCANNED = 64  # files read at a time; after a fault, all of them are read again
_COPIED = 16 << 20  # bytes requested at a time; each request waits for the storage
_WRITTEN = 1 << 20  # bytes written at a time
_PLAIN_S3 = re.compile(r"s3://([\w.-]+)(/[\w.=-]+)*", re.ASCII)  # URL whose path needs no decoding
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}", re.DOTALL)  # temporary name under which `put` writes a file


def absolute(uri: str) -> str:
    """The one name of a place: local parts absolute and without file://, other URLs as they are.

    In a chain, each link lies in the next (`zip://a.mp4::s3://bucket/x.zip`).
    """
    links = uri.split("::") if "://" in uri and not uri.startswith("file:") else [uri]
    # `zip://` is the root of an archive, and a word alone, such as simplecache, a link without a path.
    bare = [len(links) > 1 and (link.isalnum() or link.endswith("://")) for link in links]
    return "::".join(link if alone else _absolute_link(link) for link, alone in zip(links, bare, strict=True))


def _absolute_link(link: str) -> str:
    if link.startswith("file:/"):
        link = _path_of(link)
    return link.rstrip("/") if "://" in link else os.path.abspath(os.path.expanduser(link))


def _path_of(uri: str) -> str:
    """The path of a file: URI. Escapes are undone, unless a file has just this name: many people write none."""
    path = uri.removeprefix("file:")
    if path.startswith("//"):
        path = path[2:].removeprefix("localhost") if path.startswith("//localhost/") else path[2:]
    escaped, mark, fragment = path.partition("#")
    if "%" not in escaped or os.path.exists(path):
        return path
    return urllib.parse.unquote(escaped, errors="surrogateescape") + mark + fragment


def is_local(uri: str) -> bool:
    """Whether the URI names a path on this machine."""
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *names: str) -> str:
    """The URI of a file or a folder below another. A name in a list may say more: see `resolve`."""
    before, link, after = split(uri)
    root = link if link.endswith("://") else f"{link.rstrip('/')}/"
    return f"{before}{root}{'/'.join(names)}{after}"


def resolve(folder: str, name: str) -> str:
    """The absolute URI that a name in a list means: relative to an absolute folder, or itself where it is absolute.

    A backslash separates folders, as on Windows, unless there is a local file of just this name.
    """
    if "://" in name or name.startswith("file:/"):
        return absolute(name)
    if "\\" in name and not (is_local(folder) and os.path.exists(os.path.join(folder, name))):
        name = name.replace("\\", "/")
    if is_local(folder) or os.path.isabs(name):
        return os.path.abspath(os.path.join(folder, name))
    if not {".", ".."} & set(name.split("/")):
        return join(folder, name)
    before, link, after = split(folder)
    scheme, _, path = link.partition("://")
    return f"{before}{scheme}://{posixpath.normpath(posixpath.join(path, name))}{after}"


def split(uri: str) -> tuple[str, str, str]:
    """(before, link, after) of an absolute URI: the link of a chain that holds the path, and what stands around it."""
    links = uri.split("::") if not is_local(uri) else [uri]
    at = next((i for i, link in enumerate(links) if not link.isalnum()), 0)
    return "".join(f"{link}::" for link in links[:at]), links[at], "".join(f"::{link}" for link in links[at + 1 :])


def base_name(uri: str) -> str:
    """The file's name without its folder, for suffixes and messages; of a web address without the query."""
    link = split(uri)[1]
    if link.startswith(("http://", "https://")):
        link = link.partition("?")[0]
    return link.rstrip("/").rpartition("/")[2]


def parent(uri: str) -> str:
    """The folder of an absolute URI."""
    if is_local(uri):
        return os.path.dirname(uri)
    before, link, after = split(uri)
    scheme, _, path = link.partition("://")
    if scheme in ("http", "https"):
        path = path.partition("?")[0]
    return f"{before}{scheme}://{path.rpartition('/')[0]}{after}"


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """File system of a path or URI, and the path in it. Raises ValueError for a scheme that pyarrow cannot open."""
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), absolute(uri)
    try:
        if plain := _PLAIN_S3.fullmatch(uri):
            return _s3(plain[1], _aws_settings(), os.getpid()), uri.removeprefix("s3://")
        return pyarrow.fs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"cannot open {uri}: {error}; use a local path, s3://, gs:// or hdfs://") from error


def _aws_settings() -> tuple[object, ...]:
    """Everything that an S3 client is made from: AWS variables, and when the files of credentials last changed."""
    found: list[object] = [(name, os.environ.get(name)) for name in list(os.environ) if name.startswith("AWS_")]
    for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        with contextlib.suppress(OSError):
            found.append(os.stat(os.environ.get(variable) or os.path.expanduser(f"~/.aws/{usual}")).st_mtime_ns)
    return tuple(found)


@functools.lru_cache(16)
def _s3(bucket: str, settings: tuple[object, ...], process: int) -> pyarrow.fs.FileSystem:
    """Client of a bucket, kept because making one takes longer than most transfers. A forked process makes its own."""
    return pyarrow.fs.FileSystem.from_uri(f"s3://{bucket}")[0]


def put(uri: str, data: bytes | memoryview) -> None:
    """Write a file completely or not at all, under a temporary name that is then renamed. Replaces an existing file."""
    _put(uri, lambda stream: stream.write(data))


def put_file(uri: str, file: BinaryIO) -> None:
    """Write a file like `put`, with the whole content of an open binary file, a part at a time."""

    def copy(stream: Any) -> None:  # from the start, because it is repeated if the storage fails
        file.seek(0)
        shutil.copyfileobj(file, stream, _WRITTEN)

    _put(uri, copy)


@patient
def _put(uri: str, write: Callable[[Any], object]) -> None:
    files, path = filesystem(uri)
    folder, name = path.rsplit("/", 1)
    files.create_dir(folder, recursive=True)
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        with files.open_output_stream(temporary) as stream:
            write(stream)
        if is_local(uri):  # a machine that loses its power could keep the name without the data
            sync(temporary)
        files.move(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            files.delete_file(temporary)
        raise


@patient
def remove_temporary_files(uri: str, untouched_s: float) -> int:
    """Delete temporary files of `put` in a folder, which killed processes left there; returns their number.

    untouched_s: only files that were last written so many seconds ago, or longer; far more than a write may take.
    """
    files, root = filesystem(uri)
    infos = files.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    before, removed = time.time() - untouched_s, 0
    for info in infos:
        is_temporary = info.type == pyarrow.fs.FileType.File and _TEMPORARY.fullmatch(info.base_name)
        if is_temporary and info.mtime is not None and info.mtime.timestamp() < before:
            with contextlib.suppress(FileNotFoundError):  # another process deletes it, too
                files.delete_file(info.path)
                removed += 1
    return removed


def sync(path: str) -> None:
    """Wait until what was written to a local file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str) -> None:
    """Wait until a local folder, all that is below it, and its name are on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(parent, name))
        sync(parent)
    sync(os.path.dirname(folder))


@patient
def read(uri: str) -> bytes | None:
    """Read the bytes of a file; None when there is no such file."""
    if not exists(uri):
        return None
    files, path = filesystem(uri)
    with files.open_input_stream(path) as stream:
        return stream.read()


def exists(uri: str) -> bool:
    """Whether there is a file of this name."""
    return size(uri) is not None


@patient
def size(uri: str) -> int | None:
    """Bytes of a file; None when there is no such file."""
    files, path = filesystem(uri)
    info = files.get_file_info(path)
    return info.size if info.type == pyarrow.fs.FileType.File else None


def put_changed(uri: str, data: bytes) -> None:
    """Write a file unless it already holds these bytes, so that repeating a finished job changes no file."""
    if read(uri) != data:
        put(uri, data)


def put_json(uri: str, value: Any) -> None:
    """Write JSON, redacted, unless the file already holds the same."""
    put_changed(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Encode JSON for a file that people read, without the passwords of URLs in it."""
    return (redact(json.dumps(value, indent=2)) + "\n").encode()


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
    return list(file_sizes(uri, suffixes))


@patient
def file_sizes(uri: str, suffixes: tuple[str, ...]) -> dict[str, int]:
    """The files of list_files, and the bytes of each."""
    files, root = filesystem(uri)
    infos = files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True))
    below = [(info.path[len(root) :].lstrip("/"), info) for info in infos if info.type == pyarrow.fs.FileType.File]
    kept = [(name, info.size) for name, info in below if name.lower().endswith(suffixes) and "/." not in f"/{name}"]
    return {join(absolute(uri), name): size for name, size in sorted(kept)}


def scan(uri: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield these columns, and read no others, of all Parquet files below a folder: one table for every few files."""
    names = list_files(uri, (".parquet",))
    for first in range(0, len(names), _SCANNED):
        yield read_tables(uri, names[first : first + _SCANNED], schema)


@patient
def read_tables(uri: str, names: list[str], schema: pa.Schema | None = None) -> pa.Table:
    """Read Parquet files below a folder as one table. schema: columns to read; those that a file lacks are null."""
    files, _ = filesystem(uri)
    paths = [filesystem(name)[1] for name in names]
    return pyarrow.dataset.dataset(paths, schema=schema, filesystem=files, format="parquet").to_table()


def upload(folder: Path, uri: str) -> None:
    """Make the folder at a URI a copy of a local one: files are replaced, and others deleted."""
    files, path = filesystem(uri)
    retried(uri, pyarrow.fs.copy_files, str(folder), path, destination_filesystem=files)
    own = {join(absolute(uri), file.relative_to(folder).as_posix()) for file in folder.rglob("*")}
    for stale in set(list_files(uri, ("",))) - own:
        remove(stale)


def download(uri: str, folder: Path) -> Path:
    """Copy the files below a URI to a new local folder; returns it."""
    files, path = filesystem(uri)
    folder.mkdir(parents=True)
    retried(uri, pyarrow.fs.copy_files, path, str(folder), source_filesystem=files, chunk_size=_COPIED)
    return folder


@patient
def remove(uri: str) -> None:
    """Delete a file, if there is one."""
    if exists(uri):
        files, path = filesystem(uri)
        files.delete_file(path)
