"""Read WebDataset shards: tar files in which a video and its caption share a key, the name up to its first dot.

The uri of a video in a shard is `{shard}#{member}@{offset}+{size}`: the shard's absolute uri, the member's name,
percent-encoded, and the position of its bytes. So a clip is read with one seek, and no process scans a shard to find
it. Memory grows with the number of members of the largest shard.
"""

import contextlib
import os
import posixpath
import re
import tarfile
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from cinemo.mistaken import HEAD, mistaken
from cinemo.video import VIDEO_SUFFIXES
from pipelines.core import storage
from pipelines.sources import columns, places, textfiles
from pipelines.sources.rows import Row, Tally, captioned, too_long

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_MEMBERS = 1_000_000  # of a shard, whose names are held in memory
_TEXTS = (".txt", ".caption", ".json")  # endings of captions, in order of precedence
_BLOCK = 64 << 10  # bytes per request while reading headers: fits a caption and the next header; videos are skipped
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPAN = re.compile(r"(?P<shard>.+)#[^#@]+@(?P<offset>\d+)\+(?P<size>\d+)")


def expand(pattern: str) -> Iterator[str]:
    """Expand `shards/{000..127}.tar` to shards/000.tar and so on, padded like the first number; or yield it unchanged.

    Raises ValueError for a descending range.
    """
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    low, high = found.groups()
    if int(low) > int(high):
        raise ValueError(f"the range {found[0]} runs backwards; write the smaller number first")
    for number in range(int(low), int(high) + 1):
        for rest in expand(pattern[found.end() :]):
            yield f"{pattern[: found.start()]}{number:0{len(low)}}{rest}"


def member_uri(shard: str, name: str, span: str) -> str:
    """The uri of a member by its name. span: offset and size of its bytes, such as 512+700."""
    return f"{shard}#{urllib.parse.quote(name, errors='surrogateescape')}@{span}"


def parse(uri: str) -> tuple[str, int, int] | None:
    """Parse the uri of a video in a shard: (shard, offset, size); None for any other uri."""
    match = _SPAN.fullmatch(uri)
    return (match["shard"], int(match["offset"]), int(match["size"])) if match else None


def rows(shard: str, tally: Tally) -> Iterator[Row]:
    """Yield the videos of one shard, in order, with the captions of their keys, wherever these are in the shard.

    A truncated shard yields what it has, and a row with the fault. Raises ValueError when it is not a tar file.
    """
    videos: list[tuple[str, str, str]] = []  # name in the shard, the same without `./`, span ("" for a link)
    captions: dict[str, Row] = {}
    links: dict[str, str] = {}
    short, fault = storage.base_name(shard), None
    with places.open_binary(shard, _BLOCK) as file, _open_tar(shard, file) as tar:
        try:
            for member in _members(tar):
                name = posixpath.normpath(member.name)  # without `./`
                if not member.isreg():
                    links[name] = _target(member)
                if name.lower().endswith(VIDEO_SUFFIXES):
                    span = f"{member.offset_data}+{member.size}" if member.isreg() else ""
                    videos.append((member.name, name, span))
                elif not name.lower().endswith(_TEXTS):
                    tally.pass_over(name)
                elif member.isreg():
                    captions[name] = captioned("", f"{short} {name}", _read(tar, member), tally)
                if len(videos) + len(captions) + len(links) > MAX_MEMBERS:
                    raise tarfile.ReadError(f"it has more than {MAX_MEMBERS:,} members; split it")
        except tarfile.TarError as error:
            fault = str(error)
        else:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                fault = f"no tar header and no end of archive at byte {tar.offset}"
    ends = {name: _follow(name, links) for name in links}
    captions |= {name: captions[end] for name, end in ends.items() if end in captions}
    beside = {_lower(name): captions[name] for name in reversed(captions)}
    spans = {name: span for _, name, span in videos}
    for called, name, span in videos:
        if span := span or spans.get(ends[name], ""):
            found = (beside[one] for one in _captions_of(name) if one in beside)
            yield next(found, Row("", ""))._replace(uri=member_uri(shard, called, span))
        else:
            lost = f"{short} {name} is a link to {links[name]}, which is not there"
            yield Row(member_uri(shard, called, "0+0"), "", lost)
    if fault is not None:
        yield Row(shard, "", f"{short} is damaged, and what follows is not read: {fault}")


def _target(link: tarfile.TarInfo) -> str:
    """The name of a link's target: that of a symbolic link is relative to its own folder."""
    name = link.linkname if link.islnk() else posixpath.join(posixpath.dirname(link.name), link.linkname)
    return posixpath.normpath(name)


def _follow(name: str, links: Mapping[str, str]) -> str:
    """The end of a chain of links."""
    for _ in range(40):  # Linux's limit
        name = links.get(name, name)
    return name


def _split(name: str) -> tuple[str, str]:
    """Split a member's name into (key, extension): the key ends at the first dot of the base name, as in WebDataset."""
    folder, base = posixpath.split(name)
    key, _, extension = base.partition(".")
    return posixpath.join(folder, key), extension


def _lower(name: str) -> str:
    """A name with its extension in lower case."""
    key, extension = _split(name)
    return f"{key}.{extension.lower()}"


def _captions_of(video: str) -> Iterator[str]:
    """Yield names that a video's caption may have, extensions in lower case: by its own stem, then by its key."""
    name = _lower(video)
    key, stem = _split(name)[0], name.rpartition(".")[0]
    for beginning in dict.fromkeys([stem, name, key]):
        yield from (beginning + ending for ending in _TEXTS)
    yield from (f"{key}.{word}.txt" for word in columns.CAPTION[0])


def holds_video(shard: str) -> bool:
    """Whether a shard has a video; stops reading at the first. Raises ValueError when it is not a tar file."""
    with places.open_binary(shard, _BLOCK) as file, _open_tar(shard, file) as tar:
        return any(member.name.lower().endswith(VIDEO_SUFFIXES) for member in _members(tar))


def _open_tar(shard: str, file: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=cast(BinaryIO, _Bounded(file)), mode="r:")
    except tarfile.TarError as error:
        what = None
        with contextlib.suppress(ValueError):  # a stream from a web server without ranges cannot seek
            file.seek(0)
            what = mistaken(file.read(HEAD), file.seek(0, os.SEEK_END))
        what = what or f"is no tar file, or a compressed one ({error}); {UNPACK}"
        raise ValueError(f"{storage.base_name(shard)} {what}") from error


class _Bounded:
    """A file that refuses long reads, because tarfile would read a header of any length into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if size > textfiles.MAX_TEXT + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header has {size:,} bytes")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


UNPACK = "unpack it with gunzip or its like: a video in a compressed tar cannot be sought"


def _members(tar: Any) -> Iterator[tarfile.TarInfo]:
    """Yield visible files and links, without keeping them in memory."""
    while (member := tar.next()) is not None:
        tar.members.clear()
        hidden = any(part.startswith(".") and part != "." for part in member.name.split("/"))
        is_file = member.isreg() and not member.issparse()
        if (is_file or member.islnk() or member.issym()) and not hidden:
            yield member


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | Exception:
    if member.size > textfiles.MAX_TEXT:
        return ValueError(too_long(member.size))
    opened = tar.extractfile(member)
    assert opened is not None, "a plain file"
    return opened.read()
