"""Open a video by its uri: a local path, a remote file, a span of bytes in a tar shard, or a cell of Parquet."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from cinemo.video import VideoError
from pipelines.core import storage
from pipelines.core.patience import StorageError, retried
from pipelines.sources import cells, places, webdataset

# A clip is read as an index at the end, a jump back, then one sequence. Aligned blocks take one request each, and
# fsspec keeps the last 32 of them, so that nothing is requested twice.
BLOCK = 1 << 20
_CACHE = "blockcache"


@contextmanager
def open_video(uri: str) -> Iterator[str | BinaryIO]:
    """Open a video for cinemo.video: a local path as it is, others as a seekable binary file whose `.name` is the uri.

    Only the parts of a remote file that are read are fetched, BLOCK bytes per request; from a web server without range
    requests, the file is first copied to a temporary one. A member of a local tar is read in place. Whatever a driver
    raises while reading becomes an OSError.
    Raises VideoError "missing" when there is no such file, "unreadable" when it cannot be opened; StorageError when the
    storage fails, even if the reader catches that error.
    """
    uri = storage.absolute(uri)
    span = webdataset.parse(uri)
    if span is None and storage.is_local(uri) and not cells.table_of(uri):
        if not os.path.exists(uri):
            raise VideoError("missing", f"video {uri} does not exist; check the path")
        yield uri
        return
    try:
        window = retried(uri, _open_window, uri, span)
    except StorageError:
        raise
    except FileNotFoundError as error:
        why = f"is none: {error}" if cells.table_of(uri) else "does not exist; check the address"
        raise VideoError("missing", f"video {uri} {why}") from None
    # Drivers raise their own exceptions, such as botocore's NoCredentialsError and aiohttp's ClientError.
    except Exception as error:
        raise VideoError("unreadable", f"video {uri} cannot be opened: {_sentence(error)}") from error
    with io.BufferedReader(window) as file:
        try:
            yield file
        finally:
            if window.fault is not None:
                raise window.fault


class _Window(io.RawIOBase):
    """Bytes offset to offset + size of an open file, which is closed with it. Raises OSError for all faults."""

    def __init__(self, name: str, file: BinaryIO, offset: int, size: int) -> None:
        self.name = name
        self.fault: StorageError | None = None  # the first one that reading raised
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"seek to {at}, before the beginning of {self.name}")
        self._at = at
        return at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), max(0, self._size - self._at))
        try:
            self._file.seek(self._offset + self._at)
            data = self._file.read(count)
        except StorageError as error:
            self.fault = self.fault or error
            raise
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.name} cannot be read: {_sentence(error)}") from error
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_window(uri: str, span: tuple[str, int, int] | None) -> _Window:
    if span is not None:
        shard, offset, size = span
        return _Window(uri, places.open_binary(shard, BLOCK, _CACHE), offset, size)
    found = cells.find(uri) if cells.table_of(uri) else uri
    if isinstance(found, bytes):
        return _Window(uri, io.BytesIO(found), 0, len(found))
    file = places.open_binary(found, BLOCK, _CACHE)
    try:
        size = file.seek(0, os.SEEK_END)
    except (OSError, ValueError):  # fsspec's stream from a server without range requests
        file = _copy(file)
        size = file.seek(0, os.SEEK_END)
    return _Window(uri, file, 0, size)


def _copy(stream: BinaryIO) -> BinaryIO:
    with stream:
        copy = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - the window closes it
        shutil.copyfileobj(stream, copy, BLOCK)
    return copy


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
