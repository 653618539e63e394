"""Read sources: any list of videos becomes a stream of tables (uri, caption, fault), and each video a file object.

A source is a folder of videos, a list (.csv, .tsv, .json, .jsonl, .ndjson, each also .gz, or .parquet), a folder of
.parquet files, or WebDataset .tar shards (one, a folder, or a pattern such as shards/{000..127}.tar; lists may be
patterns as well). It may be local or anything that fsspec opens, and so may each video.

A uri is absolute, so that every local file has one uri. A video, or a segment of one, that is listed twice is read
once, with its first caption. A video without a caption gets the empty prompt. An error in one row is stored in its
`fault`, which names file and line, and becomes a reject; an error of the whole source is a ValueError.

folder.py, video_lists.py (with tables.py and columns.py) and webdataset.py read the kinds of sources; segments.py
parses times, places.py opens files, media.py videos. catalogs.py reads catalogs, images.py their images.
"""

import itertools
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from cinemo.video import VIDEO_SUFFIXES
from pipelines.core import storage
from pipelines.core.hashing import Seen
from pipelines.core.patience import limited
from pipelines.dataset.records import SEGMENT
from pipelines.sources import folder, places, tables, video_lists, webdataset
from pipelines.sources.media import open_video
from pipelines.sources.rows import Row, Tally, named, or_fault

__all__ = ["CHUNK", "VIDEO", "Tally", "check", "iter_videos", "open_video"]

VIDEO = pa.schema([("uri", pa.string()), ("caption", pa.string()), ("fault", pa.string())])
CHUNK = 65536  # most rows of a table


def iter_videos(
    source: str, uri_column: str | None = None, caption_column: str | None = None, tally: Tally | None = None
) -> Iterator[pa.Table]:
    """Yield the videos of a source as tables of schema VIDEO, at most CHUNK rows each; fault is null in good rows.

    Tables with rows for segments of videos have the column `segment` as well (records.py).
    The order is the source's own, by name in a folder, and always the same. tally: counts what was found and what was
    left out. Memory: one chunk, and 8 bytes per video. Raises ValueError like `check`; OSError when storage fails.
    """
    seen, tally = Seen(), tally or Tally()
    with named(f"--input {source}: "):
        rows = _rows(source, uri_column, caption_column, tally)
        while chunk := list(itertools.islice(rows, CHUNK)):
            fresh = seen.add([row.name for row in chunk])
            for row, is_new in zip(chunk, fresh, strict=True):
                tally.add(row, bool(is_new))
            schema = VIDEO.append(pa.field(*SEGMENT)) if any(row.segment for row in chunk) else VIDEO
            columns = [pa.array([getattr(row, name) for row in chunk], pa.string()) for name in schema.names]
            table = pa.Table.from_arrays(columns, schema=schema).filter(pa.array(fresh))
            if table.num_rows:
                yield table


@limited(15)  # missing credentials should be reported soon
def check(source: str, uri_column: str | None = None, caption_column: str | None = None) -> None:
    """Refuse a source that cannot be read, before a cluster is used. Reads only its beginning.

    Raises ValueError, one sentence that starts with `--input {source}`, when it does not exist, is of no known kind,
    lacks a column, lists no video, or when its driver is not installed or is denied access.
    """
    with named(f"--input {source}: "):
        try:
            kind, files = _resolve(storage.absolute(source), uri_column, caption_column, Tally())
            if kind == ".tar":  # _rows would read a whole shard
                found = _holds_video(files)
            else:
                found = next(_rows(source, uri_column, caption_column, Tally()), None) is not None
        except ValueError:
            raise
        # Drivers raise their own exceptions, such as botocore's NoCredentialsError, without a common base class.
        except Exception as error:
            raise ValueError(f"it cannot be read: {type(error).__name__}: {error}") from error
        if not found:
            raise ValueError(_NO_VIDEO)


def _holds_video(shards: Iterator[str]) -> bool:
    """Whether one of the shards has a video. Raises ValueError or FileNotFoundError if none has and one is bad."""
    bad: Exception | None = None
    for shard in shards:
        try:
            if webdataset.holds_video(shard):
                return True
        except (ValueError, FileNotFoundError) as error:
            bad = bad or error
    if bad is not None:
        raise bad
    return False


_KINDS = f"a folder of videos, a list ({', '.join(tables.SUFFIXES)}), or WebDataset .tar shards"
_NO_VIDEO = f"it lists no video; videos end in {', '.join(VIDEO_SUFFIXES)}"


def _rows(source: str, uri_column: str | None, caption_column: str | None, tally: Tally) -> Iterator[Row]:
    """Yield all rows, including repeated ones. A bad shard, or list after the first, becomes a fault."""
    uri = storage.absolute(source)
    kind, files = _resolve(uri, uri_column, caption_column, tally)
    if kind == folder.VIDEOS:
        yield from folder.rows(uri, uri_column, caption_column, tally)
        return
    for index, file in enumerate(files):
        is_tar = kind == ".tar"
        found = webdataset.rows(file, tally) if is_tar else video_lists.rows(file, uri_column, caption_column, tally)
        # `check` has found one shard that can be read, so the first need not be that one.
        yield from or_fault(found, index == 0 and not is_tar, partial(Row, file, ""))


def _resolve(uri: str, uri_column: str | None, caption_column: str | None, tally: Tally) -> tuple[str, Iterator[str]]:
    """Find the kind of a source ("videos", ".tar" or the suffix of a list) and its files (none for "videos")."""
    if storage.base_name(uri).lower().endswith(webdataset.COMPRESSED):
        raise ValueError(webdataset.UNPACK)
    first = next(webdataset.expand(uri))
    kind = ".tar" if storage.base_name(first).lower().endswith(".tar") else tables.kind(first)
    files = webdataset.expand(uri)
    if kind is None or not places.is_file(first):
        if not places.is_folder(first):
            known = f"is neither a folder nor a file of a known kind; give {_KINDS}"
            raise ValueError(
                known if kind is None and places.is_file(first) else f"{first} does not exist; give {_KINDS}"
            )
        kind = folder.kind(uri)
        if not kind:
            raise ValueError(_NO_VIDEO)
        files = folder.files(uri, kind, tally)
    if kind == ".tar" and (uri_column or caption_column):
        raise ValueError("tar shards have no columns; leave out --uri-column and --caption-column")
    return kind, files
