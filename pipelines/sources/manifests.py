"""Lists of videos: tables (tables.py) with a column for the video and one for its caption.

Knows what columns are called, and paths relative to the list. Opens no video. A row that is broken becomes a row with a
fault that names file and line; only a list that cannot be read at all, or lacks its columns, raises ValueError.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pipelines.sources import places, tables
from pipelines.sources.rows import Row, row

# WebVid's come first: videoid, contentUrl, name (the caption), page_dir, duration.
URI_COLUMNS = ("contentUrl", "uri", "url", "path", "video", "file_name")
CAPTION_COLUMNS = ("caption", "text", "prompt", "name")


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
    name, folder = places.base_name(uri), places.parent(uri)
    columns = choose(name, tables.columns(uri), uri_column, caption_column)
    for place, record in tables.records(uri, columns.names()):
        here = f"{uri}#{place.replace(' ', '-')}"
        if tables.is_damage(place):
            yield here, "", str(record)
        else:
            yield _row(here, folder, f"{name} {place}", record, columns)


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


def _row(here: str, folder: str, where: str, record: tables.Record, columns: Columns) -> Row:
    """here: the uri of a row that names no video. where: the place in words, for a fault."""
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
