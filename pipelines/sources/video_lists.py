"""Read lists of videos: tables (tables.py) with a column for the video and, usually, one for its caption.

Paths are relative to the list; a row may stand for a segment of a video. A broken row becomes a row with a fault that
names file and line. Only a list that cannot be read at all, or lacks the column for the video, raises ValueError.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pipelines.core import storage
from pipelines.sources import cells, columns, late, places, segments, tables
from pipelines.sources.rows import Row, Tally, row, several

_USUAL = (  # names of the columns that are read
    columns.VIDEO, columns.CAPTION, (("page_dir", "videoid"),), (columns.PAIRS,),
    *(groups for kinds in columns.SEGMENTS.values() for groups in kinds),
)  # fmt: skip


class Columns(NamedTuple):
    """The columns to read.

    webvid: a contentUrl on the web stands for the downloaded file page_dir/videoid.mp4. embedded: cells hold videos.
    start, end: both columns or both None, in this unit. is_length: end holds the length of a segment. lone: if only
    one of the two has a column, that column and the name of the other, `start` or `end`. pairs: the column with all
    segments of a video, where there are none of these.
    """

    uri: str
    caption: str | None
    webvid: bool = False
    embedded: bool = False
    start: str | None = None
    end: str | None = None
    unit: str = "seconds"
    is_length: bool = False
    lone: tuple[str, str] | None = None
    pairs: str | None = None

    def names(self) -> list[str]:
        """The columns whose values are needed, each once. Embedded videos are not read."""
        wanted = [None if self.embedded else self.uri, self.caption, self.start, self.end, self.pairs]
        extra = ["page_dir", "videoid"] if self.webvid else []
        return list(dict.fromkeys([name for name in wanted if name is not None] + extra))


def rows(uri: str, uri_column: str | None, caption_column: str | None, tally: Tally) -> Iterator[Row]:
    """Yield the rows of one list, in order. uri: absolute. Columns that are None are found by their usual names.

    Raises ValueError when the list cannot be read at all or lacks a column; OSError when storage fails.
    """
    name, folder = storage.base_name(uri), storage.parent(uri)
    found = tables.columns(uri)
    chooser = late.Chooser(
        found, lambda names: choose(uri, names, uri_column, caption_column), _USUAL, (uri_column, caption_column)
    )
    lone, has_captions = chooser.first.lone, chooser.first.caption is not None
    for number, (place, record) in enumerate(tables.records(uri, chooser.first.names())):
        here = f"{uri}#{place.replace(' ', '-')}"
        where = f"{name} {place}"
        if isinstance(record, str):
            yield Row(here, "", record if tables.is_damage(place) else f"{where}: {record}", listed=True)
            continue
        try:
            chosen = _chosen(chooser, record, where)
            named = cells.uri_of(uri, chosen.uri, number) if chosen.embedded else _video(record, folder, where, chosen)
            parts = _parts(record, where, chosen, tally)
        except ValueError as error:
            yield Row(here, "", str(error), listed=True)
            continue
        lone, has_captions = lone or chosen.lone, has_captions or chosen.caption is not None
        for count, (start, end, caption) in enumerate(parts, 1):
            try:
                segment = segments.segment(start, end, chosen.unit, chosen.is_length)
            except ValueError as error:
                yield Row(here if len(parts) == 1 else f"{here}-segment-{count}", "", f"{where}: {error}", listed=True)
            else:
                yield row(named, caption, where, tally, segment, listed=True)
    # Noted at the end, because columns may begin late, and once for a list, however often their spelling changes.
    if lone:
        tally.note(f"{name} has the column {lone[0]} and none for the {lone[1]} of a segment; whole videos are taken")
    if not has_captions:
        shown = columns.listed(found)
        tally.note(f"{name} has no column for the caption; found are {shown}; name it with --caption-column")


def _chosen(chooser: late.Chooser[Columns], record: dict[str, Any], where: str) -> Columns:
    """The columns of a record. Raises ValueError."""
    try:
        return chooser.choice(record)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def choose(uri: str, found: list[str], uri_column: str | None, caption_column: str | None) -> Columns:
    """Choose the columns of the video, its caption and its segment. Raises ValueError that lists the columns found."""
    name, shown = storage.base_name(uri), columns.listed(found)
    try:
        video = columns.pick(found, uri_column, columns.VIDEO, "the video", "--uri-column")
        if video is None:
            raise ValueError(
                f"has no column for the video; found are {shown}, needed is one of "
                f"{columns.usual_names(columns.VIDEO)}, or name it with --uri-column"
            )
        rest = [column for column in found if column != video]
        webvid = columns.plain(video) == "contenturl"
        usual = (("name",), *columns.CAPTION) if webvid else columns.CAPTION
        caption = columns.pick(found if caption_column else rest, caption_column, usual, "the caption",
                               "--caption-column")  # fmt: skip
        times = _segment_columns(rest)
        pairs = None if times[0] or times[-1] else _pairs_column(uri, [column for column in rest if column != caption])
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    embedded = cells.holds_bytes(uri, video)
    # A user who names contentUrl explicitly means the address.
    downloaded = webvid and uri_column is None and {"page_dir", "videoid"} <= set(found)
    return Columns(video, caption, downloaded, embedded, *times, pairs)


def _segment_columns(found: list[str]) -> tuple[str | None, str | None, str, bool, tuple[str, str] | None]:
    """Find the fields of Columns that describe segments, from `start` on."""
    lone = None
    for unit, (starts, ends, lengths) in columns.SEGMENTS.items():
        start = columns.find(found, starts, "the start of a segment", "")
        end = columns.find(found, ends, "the end of a segment", "")
        length = columns.find(found, lengths, "the length of a segment", "") if start and not end else None
        if start and (end or length):
            return start, end or length, unit, not end, None
        if start or end:
            lone = (start, "end") if start else (end or "", "start")
    return None, None, "seconds", False, lone


def _pairs_column(uri: str, found: list[str]) -> str | None:
    """Find the column with all segments of a video. A `timestamp` may be a date, which in Parquet has its own type."""
    column = next((column for name in columns.PAIRS for column in found if columns.plain(column) == name), None)
    return column if column is not None and (tables.kind(uri) != ".parquet" or tables.may_list(uri, column)) else None


def _video(record: dict[str, Any], folder: str, where: str, chosen: Columns) -> str:
    """The uri of the video that a row names. Raises ValueError."""
    name = record.get(chosen.uri)
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{where}: {chosen.uri} is of type {type(name).__name__}, not text")
    name = (name or "").strip()
    if not name:
        raise ValueError(f"{where} names no video: {chosen.uri} is empty or missing")
    if chosen.webvid and name.startswith(("http://", "https://")):
        number = record.get("videoid") or storage.base_name(name).rpartition(".")[0]
        name = f"{record.get('page_dir') or '.'}/{number}.mp4"
    return places.file_of(name, folder, f"{where}: {chosen.uri}")


def _parts(record: dict[str, Any], where: str, chosen: Columns, tally: Tally) -> list[tuple[Any, Any, Any]]:
    """The start, end and caption of each segment that a row stands for; start and end are None for the whole video.

    Raises ValueError when segments and captions are not equally many.
    """
    caption = record.get(chosen.caption) if chosen.caption else None
    if chosen.start is not None and chosen.end is not None:
        return [(record.get(chosen.start), record.get(chosen.end), caption)]
    pairs = segments.pairs(record.get(chosen.pairs)) if chosen.pairs else None
    if not pairs:
        if pairs is not None:
            tally.note(f"the lists in the column {chosen.pairs} are no pairs of start and end; whole videos are taken")
        return [(None, None, caption)]
    captions = several(caption)
    if captions is None or len(pairs) == 1:
        captions = [caption] * len(pairs)
    if len(captions) != len(pairs):
        raise ValueError(
            f"{where}: {chosen.pairs} has {len(pairs)} segments, and {chosen.caption} {len(captions)} captions; "
            "write one caption for each segment, or one for all"
        )
    return [(start, end, caption) for (start, end), caption in zip(pairs, captions, strict=True)]
