"""Folders of videos, searched to their leaves; captions from captions.csv, or from a .txt or .json beside each video.

Knows files by their names and opens only captions. Holds the names of one folder at a time (and of those above it), so
that millions of files in many folders need little memory.
"""

import contextlib
import itertools
from collections.abc import Iterator

from cinemo.video import ANIMATED_WEBP, VIDEO_SUFFIXES, is_animated_webp
from pipelines.sources import manifests, places
from pipelines.sources.rows import Row, captioned

VIDEOS = "videos"
CAPTIONS = "captions.csv"
_BATCH = 256  # captions asked for at a time: object stores answer many requests as fast as one


def walk(folder: str) -> Iterator[tuple[str, str, set[str]]]:
    """(folder, name, all names in that folder) of every file below an absolute folder, in the order of full names."""
    found = places.entries(folder)
    names = {name for name, is_folder in found if not is_folder}
    for name, is_folder in found:
        if is_folder:
            yield from walk(places.below(folder, name))
        else:
            yield folder, name, names


def files(folder: str, suffix: str) -> Iterator[str]:
    """uris of all files below a folder that end in a suffix, in order."""
    return (places.below(place, name) for place, name, _ in walk(folder) if name.lower().endswith(suffix))


def kind(folder: str) -> str:
    """What a folder is a source of: VIDEOS, else ".tar" shards, else ".parquet" files; "" when of none of them.

    In this order, because tools that write videos or shards write tables about them beside.
    """
    if places.is_file(places.below(folder, CAPTIONS)):
        return VIDEOS
    seen = set()
    for place, name, _ in walk(folder):
        if wanted(place, name, VIDEO_SUFFIXES):
            return VIDEOS
        seen |= {suffix for suffix in (".tar", ".parquet") if name.lower().endswith(suffix)}
    return next((suffix for suffix in (".tar", ".parquet") if suffix in seen), "")


def rows(folder: str, uri_column: str | None, caption_column: str | None) -> Iterator[Row]:
    """What captions.csv lists, then all videos: who drops what was listed before keeps the captions of the former.

    A video that captions.csv names and the folder lacks is a row: it becomes a reject, not a silence.
    """
    listed = places.below(folder, CAPTIONS)
    if places.is_file(listed):
        yield from manifests.rows(listed, uri_column, caption_column)
    elif uri_column or caption_column:
        raise ValueError(f"it is a folder without {CAPTIONS}, and has no columns; leave out the names of columns")
    yield from captioned_files(folder, VIDEO_SUFFIXES)


def captioned_files(folder: str, suffixes: tuple[str, ...]) -> Iterator[Row]:
    """Files below a folder that end in one of the suffixes, with the captions beside them, in the order of names."""
    found = (
        (place, name, _beside(name, names)) for place, name, names in walk(folder) if wanted(place, name, suffixes)
    )
    while batch := list(itertools.islice(found, _BATCH)):
        texts = iter(_fetch([places.below(place, beside) for place, _, beside in batch if beside]))
        for place, name, beside in batch:
            yield captioned(places.below(place, name), beside, next(texts) if beside else None)


def wanted(place: str, name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file in a folder ends in one of the suffixes; among videos also whether it is animated WebP.

    Most .webp files are photos, or thumbnails of the videos that they lie beside: their first bytes tell.
    """
    lower = name.lower()
    if suffixes != VIDEO_SUFFIXES or not lower.endswith(ANIMATED_WEBP):
        return lower.endswith(suffixes)
    with contextlib.suppress(OSError), places.open_binary(places.below(place, name)) as file:
        return is_animated_webp(file.read(21))
    return False


def _beside(name: str, names: set[str]) -> str:
    """The name of the file with the caption of a video or an image, "" when there is none."""
    stem = name.rpartition(".")[0]
    return next((stem + suffix for suffix in (".txt", ".json") if stem + suffix in names), "")


def _fetch(uris: list[str]) -> list[bytes | Exception]:
    """The bytes of some files of one file system, or why they cannot be had."""
    if not uris:
        return []
    remote, _ = places.locate(uris[0])
    texts: list[bytes | Exception] = remote.cat_ranges([places.locate(uri)[1] for uri in uris], None, None)
    return texts
