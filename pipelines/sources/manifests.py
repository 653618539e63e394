"""Lists of videos: CSV and JSON lines, both also gzipped, and Parquet; local or remote, read as a stream.

Knows columns, lines and paths relative to the list. Opens no video. A row that is broken becomes a row with a fault
that names file and line; only a list that cannot be read at all, or lacks its columns, raises ValueError.
"""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.sources import places
from pipelines.sources.rows import Row, row

# WebVid's come first: videoid, contentUrl, name (the caption), page_dir, duration.
URI_COLUMNS = ("contentUrl", "uri", "url", "path", "video", "file_name")
CAPTION_COLUMNS = ("caption", "text", "prompt", "name")
_HEAD = 100  # JSON lines that are read to learn the columns: a line may leave out what it has not

_Record = dict[str, Any] | str  # a row, or what is wrong with it
_Records = Iterator[tuple[str, _Record]]  # each with its place in the file


class Columns(NamedTuple):
    """The columns to read. webvid: a contentUrl on the web stands for the downloaded file page_dir/videoid.mp4."""

    uri: str
    caption: str | None
    webvid: bool

    def names(self) -> list[str]:
        extra = ["page_dir", "videoid"] if self.webvid else []
        return [self.uri, *([self.caption] if self.caption else []), *extra]


def rows(uri: str, uri_column: str | None = None, caption_column: str | None = None) -> Iterator[Row]:
    """The rows of one list, in its order. uri: absolute; the names of columns: None to find them by their usual names.

    Raises ValueError when the list cannot be read from its beginning or lacks a column; OSError when storage fails.
    """
    name, suffix = places.base_name(uri), kind(uri)
    assert suffix, f"{uri} is no list"
    read_names, read_records = _READERS[suffix]
    try:
        found = read_names(uri)
    except _DAMAGED as error:
        if not _is_damage(error):
            raise
        raise ValueError(f"{name} cannot be read: {error}; is it a {suffix} file?") from error
    columns = choose(name, found, uri_column, caption_column)
    folder, place = places.parent(uri), "the beginning"
    try:
        for place, record in read_records(uri, columns):
            yield _row(uri, folder, f"{name} {place}", f"{uri}#{place.replace(' ', '-')}", record, columns)
    except _DAMAGED as error:
        if not _is_damage(error):
            raise
        rest = f"{name} is damaged after {place}, and what follows is not read: {error}"
        yield f"{uri}#after-{place.replace(' ', '-')}", "", rest


def kind(uri: str) -> str | None:
    """The suffix, without .gz, by which a file is known to be a list; None when it is none."""
    name = places.base_name(uri).lower()
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    return f".{suffix}" if f".{suffix}" in _READERS and not name.endswith(".parquet.gz") else None


def choose(name: str, found: list[str], uri_column: str | None, caption_column: str | None) -> Columns:
    """Which of the columns found are the video and its caption. Raises ValueError that lists what there is."""
    shown = ", ".join(found) or "(none)"
    for column, flag in ((uri_column, "--uri-column"), (caption_column, "--caption-column")):
        if column is not None and column not in found:
            raise ValueError(f"{name} lacks the column {column} that {flag} names; found are {shown}")
    uri = uri_column or next((column for column in URI_COLUMNS if column in found), None)
    if uri is None:
        raise ValueError(
            f"{name} has no column for the video; found are {shown}, needed is one of {', '.join(URI_COLUMNS)}, "
            "or name it with --uri-column"
        )
    usual = ("name", *CAPTION_COLUMNS) if uri == "contentUrl" else CAPTION_COLUMNS
    caption = caption_column or next((column for column in usual if column in found and column != uri), None)
    # Who names contentUrl himself means the address.
    webvid = uri == "contentUrl" and uri_column is None and {"page_dir", "videoid"} <= set(found)
    return Columns(uri, caption, webvid)


def _row(uri: str, folder: str, where: str, here: str, record: _Record, columns: Columns) -> Row:
    """where: the place in words, for a fault. here: the uri of a row that names no video."""
    if isinstance(record, str):
        return here, "", f"{where}: {record}"
    name = record.get(columns.uri)
    if name is not None and not isinstance(name, str):
        return here, "", f"{where}: {columns.uri} is of type {type(name).__name__}, not text"
    name = (name or "").strip()
    if not name:
        return here, "", f"{where} names no video: {columns.uri} is empty or missing"
    if columns.webvid and name.startswith(("http://", "https://")):
        number = record.get("videoid") or places.base_name(name).rpartition(".")[0]
        name = f"{record.get('page_dir') or '.'}/{number}.mp4"
    if "\0" in name:
        return here, "", f"{where}: {columns.uri} holds a zero byte"
    return row(places.below(folder, name), record.get(columns.caption) if columns.caption else None, where)


# Readers. Each kind has two: the names of its columns, and its records.


def _csv_names(uri: str) -> list[str]:
    with _open_text(uri) as text:
        return _header(csv.reader(text))


def _csv_records(uri: str, columns: Columns) -> _Records:
    with _open_text(uri) as text:
        reader = csv.reader(text)
        header = _header(reader)
        at = [(name, header.index(name)) for name in columns.names()]
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"line {reader.line_num}", str(error)
                continue
            place = f"line {reader.line_num}"
            if len(fields) == len(header):
                yield place, {name: fields[i] for name, i in at}
            elif fields:  # a blank line is no row
                yield place, f"{len(fields)} fields where the header has {len(header)}; is a comma or quote unescaped?"


def _header(reader: Any) -> list[str]:
    try:
        return [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ValueError(f"the first line is no CSV header: {error}") from error


def _json_names(uri: str) -> list[str]:
    records = itertools.islice(_json_records(uri), _HEAD)
    return list(dict.fromkeys(key for _, record in records if isinstance(record, dict) for key in record))


def _json_records(uri: str, _columns: Columns | None = None) -> _Records:
    with _open_lines(uri) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"not JSON ({error})"
                continue
            good = isinstance(record, dict)
            yield f"line {number}", record if good else f"a JSON {type(record).__name__}, not an object"


def _parquet_names(uri: str) -> list[str]:
    with places.open_binary(uri) as file, pq.ParquetFile(file) as table:
        return list(table.schema_arrow.names)


def _parquet_records(uri: str, columns: Columns) -> _Records:
    number = 0
    # buffer_size: without it pyarrow holds whole column chunks, however large.
    with places.open_binary(uri) as file, pq.ParquetFile(file, buffer_size=1 << 20) as table:
        for batch in table.iter_batches(8192, columns=columns.names()):
            for record in zip(*(_values(batch[name]) for name in columns.names()), strict=True):
                number += 1
                yield f"row {number}", dict(zip(columns.names(), record, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        return cast(list[Any], column.to_pylist())
    except UnicodeDecodeError:  # Parquet promises UTF-8 and does not check it
        values = column.cast(pa.binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]


@contextmanager
def _open_lines(uri: str) -> Iterator[BinaryIO]:
    with places.open_binary(uri) as file:
        if places.base_name(uri).lower().endswith(".gz"):
            with gzip.open(file) as unzipped:
                yield cast(BinaryIO, unzipped)
        else:
            yield file


@contextmanager
def _open_text(uri: str) -> Iterator[io.TextIOWrapper]:
    """Text in which bytes that are not UTF-8 are lone surrogates, so that they spoil their own row only."""
    with _open_lines(uri) as lines, io.TextIOWrapper(lines, "utf-8-sig", "surrogateescape", newline="") as text:
        yield text


_READERS: dict[str, tuple[Callable[[str], list[str]], Callable[[str, Columns], _Records]]] = {
    ".csv": (_csv_names, _csv_records),
    ".jsonl": (_json_names, _json_records),
    ".ndjson": (_json_names, _json_records),
    ".parquet": (_parquet_names, _parquet_records),
}
SUFFIXES = tuple(_READERS)

# What readers raise for bytes that are no such file; _is_damage tells pyarrow's OSError from a storage's.
_DAMAGED = (EOFError, zlib.error, pa.ArrowInvalid, OSError)


def _is_damage(error: Exception) -> bool:
    """Storage gives its errors a number; pyarrow and gzip, which use the same class for damaged bytes, do not."""
    return not isinstance(error, OSError) or (error.errno is None and type(error) in (OSError, gzip.BadGzipFile))
