"""Read table files as a stream of records: CSV and JSON (textfiles.py), both also gzipped, and Parquet.

A broken row becomes a message in its place; only a file that cannot be read at all raises ValueError.
"""

import gzip
import io
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.sources import places, textfiles

_HEAD = 100  # JSON lines read to learn the columns, because a line may lack some; late.py is for those that follow

Record = dict[str, Any] | str  # a row, or a message about a broken one
Records = Iterator[tuple[str, Record]]  # each with its place in the file, such as "line 3"


def kind(uri: str) -> str | None:
    """The suffix of a table file, without .gz; None for other files."""
    name = storage.base_name(uri).lower()
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    return f".{suffix}" if f".{suffix}" in _READERS and not name.endswith(".parquet.gz") else None


def columns(uri: str) -> list[str]:
    """Read the names of a table's columns; of JSON, those in its first records.

    Raises ValueError when it cannot be read, OSError when storage fails.
    """
    suffix = _suffix(uri)
    try:
        return _READERS[suffix][0](uri)
    except _DAMAGED as error:
        if not _is_damage(error):
            raise
        raise ValueError(f"{storage.base_name(uri)} cannot be read: {error}; is it a {suffix} file?") from error


def records(uri: str, names: Sequence[str]) -> Records:
    """Yield the rows of a table as dictionaries, in order; from Parquet and CSV, only the columns in `names`.

    A damaged file yields the rows before the damage, and a message. Raises OSError when storage fails.
    """
    place = "the beginning"
    try:
        for place, record in _READERS[_suffix(uri)][1](uri, names):
            yield place, record
    except _DAMAGED as error:
        if not _is_damage(error):
            raise
        name = storage.base_name(uri)
        yield f"after {place}", f"{name} is damaged after {place}, and what follows is not read: {error}"


def schema(uri: str) -> pa.Schema:
    """Read the Arrow schema of a Parquet table that `columns` has read without error."""
    with places.open_binary(uri) as file, pq.ParquetFile(file) as table:
        return table.schema_arrow


def may_list(uri: str, column: str) -> bool:
    """Whether cells of a Parquet column may hold lists of numbers or texts, or texts that spell them."""
    kind = schema(uri).field(column).type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_floating(kind) or pa.types.is_integer(kind))


def is_damage(place: str) -> bool:
    """Whether the record at this place is the message about a damaged file."""
    return place.startswith("after ")


def _suffix(uri: str) -> str:
    suffix = kind(uri)
    assert suffix, f"{uri} is no table"
    return suffix


# Each kind of file has two readers: of column names, and of records.


def _csv_names(uri: str) -> list[str]:
    with _open_text(uri) as text:
        return textfiles.Table(text).header


def _csv_records(uri: str, names: Sequence[str]) -> Records:
    with _open_text(uri) as text:
        table = textfiles.Table(text)
        at = [(name, table.header.index(name)) for name in names]
        for number, fields in table.rows():
            yield f"line {number}", fields if isinstance(fields, str) else {name: fields[i] for name, i in at}


def _json_names(uri: str) -> list[str]:
    head = [record for _, record in itertools.islice(_json_records(uri), _HEAD)]
    found = list(dict.fromkeys(key for record in head if isinstance(record, dict) for key in record))
    if head and not found:
        name = storage.base_name(uri)
        raise ValueError(f"{name} cannot be read: it holds neither an array of objects nor one a line: {head[0]}")
    return found


def _json_records(uri: str, _names: Sequence[str] = ()) -> Records:
    with _open_text(uri) as text:
        for number, record in textfiles.json_records(text):
            yield f"line {number}", record


def _parquet_names(uri: str) -> list[str]:
    with places.open_binary(uri) as file, pq.ParquetFile(file) as table:
        return list(table.schema_arrow.names)


def _parquet_records(uri: str, names: Sequence[str]) -> Records:
    number = 0
    # buffer_size: without it pyarrow holds whole column chunks, however large.
    with places.open_binary(uri) as file, pq.ParquetFile(file, buffer_size=1 << 20) as table:
        for batch in table.iter_batches(8192, columns=list(names)):
            columns = [_values(batch[name]) for name in names]
            for index in range(batch.num_rows):
                number += 1
                yield f"row {number}", {name: column[index] for name, column in zip(names, columns, strict=True)}


def _values(column: pa.Array) -> list[Any]:
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:  # Parquet requires UTF-8, but writers do not check it
        values = column.cast(pa.binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]


@contextmanager
def _open_text(uri: str) -> Iterator[io.TextIOWrapper]:
    with places.open_binary(uri) as file:
        if storage.base_name(uri).lower().endswith(".gz"):
            with gzip.open(file) as unzipped, textfiles.as_text(cast(BinaryIO, unzipped)) as text:
                yield text
        else:
            with textfiles.as_text(file) as text:
                yield text


_READERS: dict[str, tuple[Callable[[str], list[str]], Callable[[str, Sequence[str]], Records]]] = {
    ".csv": (_csv_names, _csv_records),
    ".tsv": (_csv_names, _csv_records),
    ".json": (_json_names, _json_records),
    ".jsonl": (_json_names, _json_records),
    ".ndjson": (_json_names, _json_records),
    ".parquet": (_parquet_names, _parquet_records),
}
SUFFIXES = tuple(_READERS)

# What readers raise for damaged files; _is_damage tells pyarrow's OSError from that of a storage.
_DAMAGED = (textfiles.LongLineError, EOFError, zlib.error, pa.ArrowInvalid, UnicodeDecodeError, OSError)


def _is_damage(error: Exception) -> bool:
    """Whether an error means damage. An OSError of a storage has an errno; pyarrow's and gzip's, for damage, do not."""
    return not isinstance(error, OSError) or (error.errno is None and type(error) in (OSError, gzip.BadGzipFile))
