"""WebDataset shards: tar files in which a video and its caption have the same name, but for the suffix.

Knows tar headers. A video in a shard has the uri `{shard}#{member}@{offset}+{size}`: the shard's absolute uri, the
member's name percent-encoded, and where its bytes lie. So a clip is read by one seek, and no process ever scans a shard
to find it. Opens no video. Memory grows with the number of members of the largest shard.
"""

import re
import tarfile
import urllib.parse
from collections.abc import Iterator
from typing import Any, BinaryIO

from cinemo.video import VIDEO_SUFFIXES
from pipelines.sources import places
from pipelines.sources.rows import Row, captioned, row

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_BLOCK = 64 << 10  # bytes a request while headers are read: a caption and the next header fit, a video is jumped over
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SPAN = re.compile(r"(?P<shard>.+)#[^#@]+@(?P<offset>\d+)\+(?P<size>\d+)")


def expand(pattern: str) -> Iterator[str]:
    """`shards/{000..127}.tar` -> shards/000.tar and so on, as wide as the first number; without braces, itself.

    Raises ValueError for a range that runs backwards.
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


def member_uri(shard: str, member: tarfile.TarInfo) -> str:
    name = urllib.parse.quote(member.name, errors="surrogateescape")
    return f"{shard}#{name}@{member.offset_data}+{member.size}"


def parse(uri: str) -> tuple[str, int, int] | None:
    """(shard, offset, size) of the uri of a video in a shard, None for any other uri."""
    match = _SPAN.fullmatch(uri)
    return (match["shard"], int(match["offset"]), int(match["size"])) if match else None


def rows(shard: str) -> Iterator[Row]:
    """The videos of one shard, in its order, with the captions of their .txt, else .json, wherever those stand in it.

    A shard that ends too early gives what it has, and a row with the fault. Raises ValueError when it is no tar file.
    """
    videos: list[tuple[str, str]] = []
    captions: dict[str, Row] = {}
    fault = None
    with places.open_binary(shard, _BLOCK) as file, _open_tar(shard, file) as tar:
        try:
            for member in _members(tar):
                stem, _, suffix = member.name.rpartition(".")
                if member.name.lower().endswith(VIDEO_SUFFIXES):
                    videos.append((stem, member_uri(shard, member)))
                elif suffix == "txt" or (suffix == "json" and stem not in captions):
                    captions[stem] = captioned("", f"{places.base_name(shard)} {member.name}", _read(tar, member))
        except tarfile.TarError as error:
            fault = str(error)
        else:
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                fault = f"no tar header and no end of archive at byte {tar.offset}"
    for stem, uri in videos:
        _, caption, wrong = captions.get(stem, row("", None, ""))
        yield uri, caption, wrong
    if fault is not None:
        yield shard, "", f"{places.base_name(shard)} is damaged, and what follows is not read: {fault}"


def holds_video(shard: str) -> bool:
    """Whether a shard has a video; reads no further than the first. Raises ValueError when it is no tar file."""
    with places.open_binary(shard, _BLOCK) as file, _open_tar(shard, file) as tar:
        return any(member.name.lower().endswith(VIDEO_SUFFIXES) for member in _members(tar))


def _open_tar(shard: str, file: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        name = places.base_name(shard)
        raise ValueError(f"{name} is no tar file, or a compressed one ({error}); {UNPACK}") from error


UNPACK = "unpack it with gunzip or its like: a video in a compressed tar cannot be sought"


def _members(tar: Any) -> Iterator[tarfile.TarInfo]:
    """Plain visible files; each is forgotten once it was given."""
    while (member := tar.next()) is not None:
        tar.members.clear()
        hidden = any(part.startswith(".") and part != "." for part in member.name.split("/"))
        if member.isreg() and not member.issparse() and not hidden:
            yield member


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None, "a plain file"
    return opened.read()
