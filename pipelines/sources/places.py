"""Where sources and videos lie: how a place is opened and listed, by its absolute URI (core/storage.py).

Knows local paths, fsspec's URLs (s3://, gs://, https://...) and its chains, where each link lies in the next
(`zip://a.mp4::s3://bucket/x.zip`). Knows nothing of manifests, captions or pixels.
"""

import contextlib
import functools
import os
from typing import Any, BinaryIO, cast

import fsspec.core

from pipelines.core import storage

STREAM_BLOCK = 4 << 20  # bytes a request, for files that are read from end to end


@functools.lru_cache(maxsize=8)
def _archive(root: str) -> Any:
    """The file system of a zip file or its like: its list of contents is read once, not for each of its videos."""
    return fsspec.core.url_to_fs(root)[0]


def locate(uri: str) -> tuple[Any, str]:
    """fsspec's file system of an absolute uri, and the path in it.

    Raises ValueError, naming the package to install, when the driver is not there; OSError when an outer link of a
    chain cannot be opened.
    """
    if storage.is_local(uri):
        return fsspec.filesystem("file"), uri
    before, link, after = storage.split(uri)
    try:
        if after and not before:
            files = _archive(f"{link.partition('://')[0]}://{after}")
            return files, files._strip_protocol(link)
        return fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise ValueError(f"{uri} cannot be opened: {error}; pip install that package on every node") from error
    except ValueError as error:
        raise ValueError(f"{uri} cannot be opened: {error}; use a path, or a URL such as s3:// or https://") from error


def open_binary(uri: str, block: int = STREAM_BLOCK, cache: str = "readahead") -> BinaryIO:
    """An absolute uri opened for reading. block, cache: bytes a request and fsspec's cache type, for what is remote."""
    if storage.is_local(uri):
        return open(uri, "rb")
    files, path = locate(uri)
    file = files.open(path, "rb", block_size=block, cache_type=cache)
    with contextlib.suppress(AttributeError):  # io.BytesIO takes no attributes, and needs none
        file._files = files  # an archive's file system, when it is forgotten, closes the files in it
    return cast(BinaryIO, file)


def is_file(uri: str) -> bool:
    if storage.is_local(uri):
        return os.path.isfile(uri)
    files, path = locate(uri)
    try:
        return bool(files.info(path)["type"] == "file")  # isfile takes every fault for "no", and GETs over HTTP
    except FileNotFoundError:
        return False


def is_folder(uri: str) -> bool:
    if storage.is_local(uri):
        return os.path.isdir(uri)
    files, path = locate(uri)
    return bool(files.isdir(path))


def entries(folder: str) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what lies in a folder, hidden names left out; in the order of full names."""
    if storage.is_local(folder):
        with os.scandir(folder) as found:
            names = [(entry.name, entry.is_dir()) for entry in found if not _loops(folder, entry)]
    else:
        files, path = locate(folder)
        listed = files.ls(path, detail=True)
        files.invalidate_cache(path)  # the driver would keep every listing, and there may be millions
        at = path.rstrip("/")
        inside = [(info["name"].rstrip("/"), info["type"] == "directory") for info in listed]
        names = [(name.rpartition("/")[2], is_folder) for name, is_folder in inside if name != at]
    shown = [entry for entry in names if not entry[0].startswith(".")]
    return sorted(shown, key=lambda entry: entry[0] + "/" * entry[1])


def _loops(folder: str, entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a link to a folder that holds it."""
    if not entry.is_symlink() or not entry.is_dir():
        return False
    return f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(entry.path)}/")
