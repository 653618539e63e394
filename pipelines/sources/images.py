"""Read an image of a catalog by its uri: a local or remote file, or a cell of a Parquet table (cells.py).

A stamp shows that a file has changed without reading it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cinemo.image import ImageError
from pipelines.core import storage
from pipelines.core.patience import StorageError, patient, retried
from pipelines.sources import cells, places, webdataset

MAX_BYTES = 256 << 20  # of one image file
# Properties that change with a file, under the names that the file systems give them.
_STAMPS = ("size", "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "LastModified", "Last-Modified", "mtime", "CRC")
_THREADS = 32  # requests at a time: object stores answer many as fast as one


def stamps(uris: Sequence[str]) -> list[str]:
    """The `stamp` of each uri; "" where access to the file is denied, which reading it will report."""
    files = {uri: _file(uri) for uri in uris}
    local = {file: _stamp_or_nothing(file) for file in set(files.values()) if storage.is_local(file)}
    remote = sorted(set(files.values()) - set(local))
    if remote:
        with ThreadPoolExecutor(_THREADS) as pool:
            local |= zip(remote, pool.map(_stamp_or_nothing, remote), strict=True)
    return [local[files[uri]] for uri in uris]


@patient
def stamp(uri: str) -> str:
    """Stamp of an image's or a video's file: its size, and its time, ETag or the like; "" if it does not exist.

    A cell has the stamp of its table, also if it names a file; a video in a shard that of the shard. Raises whatever
    the storage raises when access is denied.
    """
    file = _file(uri)
    try:
        if storage.is_local(file):
            found = os.stat(file)
            return f"{found.st_size} {found.st_mtime_ns}"
        files, path = places.locate(file)
        info = files.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return " ".join(str(info[name]) for name in _STAMPS if info.get(name) is not None)


def read(uri: str) -> bytes:
    """Read the bytes of an image's file. Raises ImageError: missing, unreadable, too_large; StorageError."""
    try:
        data = retried(uri, _read_cell if cells.table_of(uri) else _read_file, uri)
    except StorageError:
        raise
    except FileNotFoundError as error:
        why = f"is none: {error}" if cells.table_of(uri) else "does not exist; check the path"
        raise ImageError("missing", f"image {uri} {why}") from None
    # Drivers raise their own exceptions, such as botocore's NoCredentialsError and aiohttp's ClientError.
    except Exception as error:
        raise ImageError("unreadable", f"image {uri} cannot be read: {type(error).__name__}: {error}") from error
    if len(data) > MAX_BYTES:
        raise ImageError("too_large", f"image {uri} has more than {MAX_BYTES:,} bytes; scale it down first")
    return data


def _file(uri: str) -> str:
    span = webdataset.parse(uri)  # of a video in a shard
    return span[0] if span else cells.table_of(uri) or uri


def _stamp_or_nothing(uri: str) -> str:
    try:
        return stamp(uri)
    except StorageError:
        raise
    except Exception:  # each driver has its own exceptions; reading will report the fault
        return ""


def _read_cell(uri: str) -> bytes:
    found = cells.find(uri)
    return found if isinstance(found, bytes) else _read_file(found)


def _read_file(uri: str) -> bytes:
    with places.open_binary(uri) as file:
        return file.read(MAX_BYTES + 1)
