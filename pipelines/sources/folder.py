"""Search folders of videos recursively; captions come from a list in the folder or from a file beside each video.

A list is captions.csv, Hugging Face's metadata.csv, .jsonl or .parquet, or finetrainers' prompts.txt with videos.txt.
Only the names in one folder and its parents are held in memory, so that millions of files in many folders need little.
"""

import contextlib
import itertools
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from cinemo.video import ANIMATED_WEBP, VIDEO_SUFFIXES, is_animated_webp
from pipelines.core import storage
from pipelines.core.patience import StorageError, is_fault, retried
from pipelines.sources import columns, places, tables, textfiles, video_lists
from pipelines.sources.rows import Row, Tally, captioned, or_fault, row

VIDEOS = "videos"
CAPTIONS = "captions.csv"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TEXTS = (".txt", ".caption", ".json")  # endings of captions, in order of precedence
_PROMPTS = ("prompts.txt", "prompt.txt", "captions.txt")  # one line for each line of videos.txt
_BATCH = 256  # captions requested at a time: object stores answer many requests as fast as one

# Names of a folder's files, by the name with its ending in lower case; also in Unicode's form NFC, because a video and
# its caption may have come from different systems.
Names = dict[str, str]
Listed = TypeVar("Listed")


def walk(folder: str, tally: Tally) -> Iterator[tuple[str, str, Names]]:
    """Yield (folder, name, all names in that folder) of every file below an absolute folder, sorted by full name.

    Each folder comes before its files, with an empty name. A subfolder that may not be listed is left out, with a note
    in the tally.
    """
    found = places.entries(folder)
    names = {_lower(name): name for name in sorted(name for name, is_folder in found if not is_folder)}
    names = {_composed(key): name for key, name in names.items()} | names
    yield folder, "", names
    for name, is_folder in found:
        if is_folder:
            below = storage.join(folder, name)
            try:
                yield from walk(below, tally)
            except PermissionError:
                tally.note(f"{below} cannot be listed (permission denied), and is left out")
        else:
            yield folder, name, names


def _lower(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return stem + dot + ending.lower()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def files(folder: str, suffix: str, tally: Tally) -> Iterator[str]:
    """The uris of all files below a folder with a suffix, in order."""
    return (storage.join(place, name) for place, name, _ in walk(folder, tally) if name.lower().endswith(suffix))


def kind(folder: str) -> str:
    """Find what a folder holds: VIDEOS, else ".tar" shards, else ".parquet" files, else "".

    In this order, because tools that write videos or shards also write tables about them.
    """
    if places.is_file(storage.join(folder, CAPTIONS)):
        return VIDEOS
    seen = set()
    for place, name, names in walk(folder, Tally()):
        if wanted(place, name, VIDEO_SUFFIXES):
            return VIDEOS
        seen |= {suffix for suffix in (".tar", ".parquet") if name.lower().endswith(suffix)}
        if not name and place == folder and (metadata(names) or _prompts(names)):
            seen.add(VIDEOS)  # the listed videos may be elsewhere
    return next((found for found in (".tar", ".parquet", VIDEOS) if found in seen), "")


def rows(folder: str, uri_column: str | None, caption_column: str | None, tally: Tally) -> Iterator[Row]:
    """Yield the rows of lists in the folder, then all videos, so that dropping repeated ones keeps the lists' captions.

    A listed video that the folder lacks is a row, and becomes a reject.
    """
    asked = (uri_column, caption_column)
    listed = storage.join(folder, CAPTIONS)
    if places.is_file(listed):
        yield from video_lists.rows(listed, *asked, tally)
    elif any(asked) and not any(metadata(names) for _, name, names in itertools.islice(walk(folder, tally), 1)):
        raise ValueError(f"it is a folder without {CAPTIONS}, and has no columns; leave out the names of columns")

    def lists(place: str, names: Names) -> Iterator[Row]:
        for uri in metadata_of(place, names, columns.VIDEO, "--uri-column", uri_column, tally):
            found = video_lists.rows(uri, *asked, tally)
            yield from or_fault(found, place == folder, partial(Row, uri, "", listed=True))
        if pair := _prompts(names):
            broken = partial(Row, storage.join(place, pair[0]), "", listed=True)
            yield from or_fault(_pairs(place, *pair, tally), place == folder, broken)

    yield from captioned_files(folder, VIDEO_SUFFIXES, tally, lists)


def wanted(place: str, name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file has one of the suffixes or, when searching for videos, is animated WebP.

    Most .webp files are photos or thumbnails of videos, so their first bytes are read.
    """
    lower = name.lower()
    if suffixes != VIDEO_SUFFIXES or not lower.endswith(ANIMATED_WEBP):
        return lower.endswith(suffixes)
    try:
        with places.open_binary(storage.join(place, name)) as file:
            return is_animated_webp(file.read(21))
    except StorageError:
        raise
    except OSError:
        return False


def captioned_files(
    folder: str, suffixes: tuple[str, ...], tally: Tally, lists: Callable[[str, Names], Iterator[Listed]]
) -> Iterator[Row | Listed]:
    """Yield the files below a folder that have one of the suffixes, with the captions beside them, in order of names.

    lists: yields the entries of the lists in a folder, which come before its files. Other files are counted.
    """
    batch: list[tuple[str, str, str]] = []
    for place, name, names in walk(folder, tally):
        if not name:
            yield from lists(place, names)
        elif wanted(place, name, suffixes):
            batch.append((place, name, _beside(name, names)))
            if len(batch) == _BATCH:
                yield from _captioned(batch, tally)
                batch = []
        elif not name.lower().endswith(TEXTS) and name.lower() not in (CAPTIONS, *METADATA):
            tally.pass_over(name)
    yield from _captioned(batch, tally)


def metadata(names: Names) -> list[str]:
    """Hugging Face's lists among the names in a folder."""
    return [name for name in names.values() if name.lower() in METADATA]


def metadata_of(
    place: str, names: Names, usual: columns.Groups, flag: str, asked: str | None, tally: Tally
) -> Iterator[str]:
    """Yield the uris of the lists in a folder that name files; for others, add a note to the tally."""
    for uri in (storage.join(place, name) for name in metadata(names)):
        with contextlib.suppress(ValueError):  # reading it will report the fault
            if asked is None and columns.find(tables.columns(uri), usual, "", flag) is None:
                tally.note(f"{storage.base_name(uri)} has no column for a file's name, and is not read")
                continue
        yield uri


def _prompts(names: Names) -> tuple[str, str] | None:
    """The names of the lists of videos and of their prompts, if the folder has both."""
    by_name = {name.lower(): name for name in names.values()}
    prompts = next((by_name[name] for name in _PROMPTS if name in by_name), None)
    return (by_name["videos.txt"], prompts) if prompts and "videos.txt" in by_name else None


def _pairs(place: str, videos: str, prompts: str, tally: Tally) -> Iterator[Row]:
    """Pair the videos of one list with the prompts of the other, by line. Raises ValueError if the lengths differ."""
    uris = [storage.join(place, name) for name in (videos, prompts)]
    counts = [sum(1 for _ in _lines(uri)) for uri in uris]
    if counts[0] != counts[1]:
        raise ValueError(f"{videos} has {counts[0]} lines and {prompts} {counts[1]}; write one prompt for each video")
    for number, (name, prompt) in enumerate(zip(*map(_lines, uris), strict=True), 1):
        where = f"{videos} line {number}"
        if not name:
            yield Row(f"{uris[0]}#line-{number}", "", f"{where} names no video", listed=True)
            continue
        try:
            yield row(places.file_of(name, place, where), prompt, f"{prompts} line {number}", tally, listed=True)
        except ValueError as error:
            yield Row(f"{uris[0]}#line-{number}", "", str(error), listed=True)


def _lines(uri: str) -> Iterator[str]:
    """Yield the lines of a text, stripped; blank lines at its end are dropped."""
    blank = 0
    with places.open_binary(uri) as file, textfiles.as_text(file) as text:
        for line in text:
            if not line.strip():
                blank += 1
                continue
            yield from itertools.repeat("", blank)
            blank = 0
            yield line.strip()


def _beside(name: str, names: Names) -> str:
    """The name of the file with the caption of a video or an image; "" when there is none."""
    stem = name.rpartition(".")[0]
    beginnings = dict.fromkeys([stem, name, _lower(name), *map(_composed, (stem, name, _lower(name)))])
    return next((names[one + ending] for one in beginnings for ending in TEXTS if one + ending in names), "")


def _captioned(batch: list[tuple[str, str, str]], tally: Tally) -> Iterator[Row]:
    """Yield the rows of some files. batch: (folder, name, name of the caption)."""
    contents = iter(_fetch([storage.join(place, beside) for place, _, beside in batch if beside]))
    for place, name, beside in batch:
        yield captioned(storage.join(place, name), beside, next(contents) if beside else None, tally)


def _fetch(uris: list[str]) -> list[bytes | Exception]:
    """Read some files of one file system: the bytes of each, or its exception."""
    if not uris:
        return []
    return retried(uris[0], _fetch_once, uris)


def _fetch_once(uris: list[str]) -> list[bytes | Exception]:
    remote, _ = places.locate(uris[0])
    contents: list[bytes | Exception] = remote.cat_ranges([places.locate(uri)[1] for uri in uris], None, None)
    for content in contents:
        if isinstance(content, Exception) and is_fault(content):
            raise content
    return contents
