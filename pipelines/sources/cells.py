"""Images and videos stored in cells of a Parquet table: bytes, or a struct with bytes, as Hugging Face writes them.

A struct without bytes may have the path of the file, relative to the table.

The uri of a cell is `{table}#{column}@{row}`: the table's absolute uri, the column's name, percent-encoded, and the
row, counted from 0.
"""

import functools
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.sources import places, tables

BYTES, PATH = "bytes", "path"  # fields of a struct: the file, or the name of one that is stored elsewhere
_CELL = re.compile(r"(?P<table>.+)#(?P<column>[^#@]+)@(?P<row>\d+)")
_BATCH = 4  # cells in memory at a time


def uri_of(table: str, column: str, row: int) -> str:
    """The uri of a cell."""
    return f"{table}#{urllib.parse.quote(column, safe='')}@{row}"


def table_of(uri: str) -> str | None:
    """The table of a cell; None for the uri of a file."""
    match = _CELL.fullmatch(uri)
    return match["table"] if match else None


def holds_bytes(table: str, column: str) -> bool:
    """Whether the cells of a table's column hold files."""
    if tables.kind(table) != ".parquet":
        return False
    kind = tables.schema(table).field(column).type
    if pa.types.is_struct(kind):
        return any(field.name == BYTES for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def find(uri: str) -> bytes | str:
    """The bytes in a cell, or the uri of the file that it names.

    Raises FileNotFoundError when it is empty or the table does not exist; ValueError when it cannot name a file.
    """
    match = _CELL.fullmatch(uri)
    assert match, uri
    table, name, number = match["table"], urllib.parse.unquote(match["column"]), int(match["row"])
    value: Any = _reader(table, name).at(number)
    path = None
    if isinstance(value, dict):
        value, path = value.get(BYTES), value.get(PATH)
    if value:
        return bytes(value)
    if value is not None or not isinstance(path, str) or not path.strip():
        raise FileNotFoundError(f"{table} row {number + 1}: {name} is empty")
    return places.file_of(path.strip(), storage.parent(table), f"{table} row {number + 1}: {name}")


@functools.lru_cache(maxsize=2)
def _reader(table: str, column: str) -> "_Cells":
    return _Cells(table, column)


class _Cells:
    """A column of a Parquet table, read in order: moving forward is cheap, moving back reads the row group again."""

    def __init__(self, table: str, column: str) -> None:
        self._table, self._column = table, column
        self._first, self._cells = 0, []  # type: int, list[Any]
        self._following: Iterator[Any] = iter(())
        self._end = 0  # end of the current row group

    def at(self, row: int) -> Any:
        """The value in a row. Raises IndexError beyond the last row."""
        if not self._first <= row < self._end:
            self._open(row)
        while row >= self._first + len(self._cells):
            # While the end is 0, and so after an error, a call opens the row group again.
            first, self._end, end = self._first + len(self._cells), 0, self._end
            self._cells = next(self._following).column(0).to_pylist()
            self._first, self._end = first, end
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
