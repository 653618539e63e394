"""One image of a catalog by its uri: a file wherever it is, or a cell of a Parquet table.

A cell has the uri `{table}#{column}@{row}`: the table's absolute uri, the column's name percent-encoded, the row from
0. Knows file objects and stamps, which tell that a file changed without reading it. Knows nothing of pixels.
"""

import functools
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow.parquet as pq

from pipelines.sources import places, webdataset

BYTES = "bytes"  # the field of a struct that holds an image
MAX_BYTES = 256 << 20  # of one image file
_CELL = re.compile(r"(?P<table>.+)#(?P<column>[^#@]+)@(?P<row>\d+)")
# What file systems say of a file that changes with it, each under names of its own.
_STAMPS = ("size", "ETag", "etag", "md5Hash", "Content-MD5", "Digest", "LastModified", "Last-Modified", "mtime", "CRC")
_THREADS = 32  # requests at a time: object stores answer many as fast as one
_BATCH = 16  # cells that are in memory at a time


def cell(table: str, column: str, row: int) -> str:
    """The uri of a cell of a Parquet table."""
    return f"{table}#{urllib.parse.quote(column, safe='')}@{row}"


def stamps(uris: Sequence[str]) -> list[str]:
    """What `stamp` says of each; "" for one that cannot be asked for now, which is a fault for who reads it."""
    files = {uri: _file(uri) for uri in uris}
    local = {file: _stamp_or_nothing(file) for file in set(files.values()) if places.is_local(file)}
    remote = sorted(set(files.values()) - set(local))
    if remote:
        with ThreadPoolExecutor(_THREADS) as pool:
            local |= zip(remote, pool.map(_stamp_or_nothing, remote), strict=True)
    return [local[files[uri]] for uri in uris]


def stamp(uri: str) -> str:
    """What changes when an image's or a video's file does: its size, and its time, ETag or the like; "" without a file.

    Of a cell, that of its table; of a video in a shard, that of the shard. Raises whatever the storage raises for who
    is not let in.
    """
    file = _file(uri)
    try:
        if places.is_local(file):
            found = os.stat(file)
            return f"{found.st_size} {found.st_mtime_ns}"
        files, path = places.locate(file)
        info = files.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return " ".join(str(info[name]) for name in _STAMPS if info.get(name) is not None)


def read(uri: str) -> bytes:
    """The bytes of an image's file. Raises ImageError: missing, unreadable, too_large."""
    from cinemo.image import ImageError  # torch, which listing a catalog does not need

    match = _CELL.fullmatch(uri)
    try:
        data = _read_cell(**match.groupdict()) if match else _read_file(uri)
    except FileNotFoundError:
        raise ImageError("missing", f"image {uri} does not exist; check the path") from None
    except ImageError:
        raise
    # Drivers have exceptions of their own, such as botocore's NoCredentialsError and aiohttp's ClientError.
    except Exception as error:
        raise ImageError("unreadable", f"image {uri} cannot be read: {type(error).__name__}: {error}") from error
    if len(data) > MAX_BYTES:
        raise ImageError("too_large", f"image {uri} has more than {MAX_BYTES:,} bytes; scale it down first")
    return data


def _file(uri: str) -> str:
    match = _CELL.fullmatch(uri)
    if match:
        return match["table"]
    span = webdataset.parse(uri)  # of a video in a shard
    return span[0] if span else uri


def _stamp_or_nothing(uri: str) -> str:
    try:
        return stamp(uri)
    except Exception:  # each driver has its own; reading says what is wrong
        return ""


def _read_file(uri: str) -> bytes:
    with places.open_binary(uri) as file:
        return file.read(MAX_BYTES + 1)


def _read_cell(table: str, column: str, row: str) -> bytes:
    from cinemo.image import ImageError

    name, number = urllib.parse.unquote(column), int(row)
    value = _reader(table, name).at(number)
    if isinstance(value, dict):
        value = value.get(BYTES)
    if not value:
        raise ImageError("missing", f"image {table} row {number + 1} holds no image: {name} is empty")
    return bytes(value)


@functools.lru_cache(maxsize=2)
def _reader(table: str, column: str) -> "_Cells":
    return _Cells(table, column)


class _Cells:
    """A column of a Parquet table, read from front to back: going on is cheap, going back reads a row group anew."""

    def __init__(self, table: str, column: str) -> None:
        self._table, self._column = table, column
        self._first, self._cells = 0, []  # type: int, list[Any]
        self._following: Iterator[Any] = iter(())
        self._end = 0  # of the row group that is being read

    def at(self, row: int) -> Any:
        """The value in a row. Raises IndexError when the table has fewer."""
        if not self._first <= row < self._end:
            self._open(row)
        while row >= self._first + len(self._cells):
            self._first += len(self._cells)
            self._cells = next(self._following).column(0).to_pylist()
        return self._cells[row - self._first]

    def _open(self, row: int) -> None:
        # buffer_size: without it pyarrow holds whole column chunks, however large.
        file = pq.ParquetFile(places.open_binary(self._table), buffer_size=1 << 20)
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row < first + count:
                self._first, self._end, self._cells = first, first + count, []
                self._following = file.iter_batches(_BATCH, row_groups=[group], columns=[self._column])
                return
            first += count
        raise IndexError(f"{self._table} has {first} rows and no row {row + 1}")
