"""Open and list places by their absolute URI (core/storage.py).

A place is a local path, one of fsspec's URLs (s3://, gs://, https://...), or a chain in which each link lies in the
next (`zip://a.mp4::s3://bucket/x.zip`).
"""

import contextlib
import functools
import os
from typing import Any, BinaryIO, cast

import fsspec.core

from pipelines.core import storage
from pipelines.core.patience import patient, retried

STREAM_BLOCK = 4 << 20  # bytes per request, for files that are read from start to end


@functools.lru_cache(maxsize=8)
def _archive(root: str) -> Any:
    """The file system of an archive such as a zip, cached so that its directory is not read for each of its videos."""
    files = fsspec.core.url_to_fs(root)[0]
    _retry_reads(root, getattr(files, "fo", None))
    return files


def locate(uri: str) -> tuple[Any, str]:
    """Find fsspec's file system of an absolute uri, and the path in it.

    Raises ValueError, naming the package to install, when the driver is missing; OSError when an outer link of a chain
    cannot be opened.
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


@patient
def open_binary(uri: str, block: int = STREAM_BLOCK, cache: str = "readahead") -> BinaryIO:
    """Open an absolute uri for reading; faults of a remote storage are retried, also those of later reads.

    block, cache: bytes per request and fsspec's cache type, for remote files.
    """
    if storage.is_local(uri):
        return open(uri, "rb")
    files, path = locate(uri)
    file = files.open(path, "rb", block_size=block, cache_type=cache)
    _retry_reads(uri, file)
    with contextlib.suppress(AttributeError):  # io.BytesIO has no attributes, and needs none
        file._files = files  # keep the file system: when an archive's is collected, it closes its files
    return cast(BinaryIO, file)


def _retry_reads(uri: str, file: Any) -> None:
    """Make a remote file retry the requests of its reads, where it makes several."""
    if fetch := getattr(getattr(file, "cache", None), "fetcher", None):
        file.cache.fetcher = functools.partial(retried, uri, fetch)


@patient
def is_file(uri: str) -> bool:
    if storage.is_local(uri):
        return os.path.isfile(uri)
    files, path = locate(uri)
    try:
        return bool(files.info(path)["type"] == "file")  # isfile returns False for every fault, and GETs over HTTP
    except FileNotFoundError:
        return False


@patient
def is_folder(uri: str) -> bool:
    if storage.is_local(uri):
        return os.path.isdir(uri)
    files, path = locate(uri)
    return bool(files.isdir(path))


@patient
def entries(folder: str) -> list[tuple[str, bool]]:
    """List (name, whether it is a folder) of a folder's entries without hidden ones, sorted by full name."""
    if storage.is_local(folder):
        with os.scandir(folder) as found:
            names = [(entry.name, entry.is_dir()) for entry in found if not _loops(folder, entry)]
    else:
        files, path = locate(folder)
        listed = files.ls(path, detail=True)
        files.invalidate_cache(path)  # the driver would keep every listing, of millions of names
        at = path.rstrip("/")
        inside = [(info["name"].rstrip("/"), info["type"] == "directory") for info in listed]
        names = [(name.rpartition("/")[2], is_folder) for name, is_folder in inside if name != at]
    shown = [entry for entry in names if not entry[0].startswith(".")]
    return sorted(shown, key=lambda entry: entry[0] + "/" * entry[1])


def _loops(folder: str, entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a link to a folder that contains it."""
    if not entry.is_symlink() or not entry.is_dir():
        return False
    return f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(entry.path)}/")
