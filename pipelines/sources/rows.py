"""Rows of a source: one video, or a segment of one, with its caption; and counts of what a source holds.

A fault of one video is stored in its row and becomes a reject later; rows are made without raising. A job passes an
empty tally to the readers of its source, and prints it.
"""

import ast
import io
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.dataset.records import name_of
from pipelines.sources import columns, textfiles

MANY = 0.1  # share of videos without a caption above which a warning is printed

MAX_CAPTION = 10_000  # characters: far more than any text encoder reads
_SCALAR = re.compile(r"\bnp\.(str_|float\d+|int\d+)\(")  # in a list of numpy's scalars, as numpy 2 spells them
_LONGEST_LIST = 200_000  # characters of a list in which commas may be missing: finding them takes up to two seconds


class Row(NamedTuple):
    """A video. segment: the part of it to use (segments.py), None for all. listed: whether a list names it."""

    uri: str
    caption: str = ""
    fault: str | None = None
    segment: str | None = None
    listed: bool = False

    @property
    def name(self) -> str:
        """Identifies the row among all others."""
        return name_of({"uri": self.uri, "segment": self.segment})


@dataclass
class Tally:
    """Counts of one pass over a source.

    A segment counts as a video, with or without a caption; segments: how many of these are segments.
    repeated: rows of a list that name a video or a segment again; the first row's caption is used.
    alternatives: rows with several captions, of which the first is used. unknown: files that are neither videos nor
    captions, by ending. notes: messages, each once.
    """

    captioned: int = 0
    uncaptioned: int = 0
    segments: int = 0
    faults: int = 0
    repeated: int = 0
    alternatives: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Any, is_new: bool) -> None:
        """Count a row (Row). A file in a folder that a list has named does not count as repeated."""
        if not is_new:
            self.repeated += row.listed
        elif row.fault is not None:
            self.faults += 1
        else:
            self.segments += row.segment is not None
            self.captioned += row.caption != ""
            self.uncaptioned += row.caption == ""

    def note(self, sentence: str) -> None:
        """Add a note, unless it is there already."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def pass_over(self, name: str) -> None:
        """Count a file of an unknown kind."""
        stem, dot, ending = name.rpartition(".")
        self.unknown[f".{ending.lower()}" if dot and stem else "(no ending)"] += 1

    def counts(self) -> dict[str, Any]:
        """Counts for a job's summary."""
        return {
            "with_caption": self.captioned,
            "without_caption": self.uncaptioned,
            "segments": self.segments,
            "rows_with_a_fault": self.faults,
            "rows_that_repeat_a_video": self.repeated,
            "rows_with_several_captions": self.alternatives,
            "files_of_unknown_kinds": dict(sorted(self.unknown.items())),
        }

    def warnings(self) -> Iterator[str]:
        """Yield notes and warnings to print before the work begins."""
        yield from (f"note: {sentence}" for sentence in self.notes)
        videos = self.captioned + self.uncaptioned
        if self.uncaptioned > MANY * videos:
            yield f"warning: {self.uncaptioned} of {videos} videos have no caption, and get the empty prompt"

    def lines(self) -> Iterator[str]:
        """Yield lines to print at the end of a job that reads videos."""
        yield _line(self.captioned, "videos with a caption")
        yield _line(self.uncaptioned, "videos without a caption")
        if self.segments:
            yield _line(self.segments, "of them are segments of videos")
        if self.faults:
            yield _line(self.faults, "rows with a fault, which are rejects")
        if self.repeated:
            yield _line(self.repeated, "rows left out: they repeat a video that an earlier row names")
        if self.alternatives:
            yield _line(self.alternatives, "rows with several captions, of which the first was taken")
        yield from self.lines_of_files()

    def lines_of_files(self) -> Iterator[str]:
        """Yield a line about the skipped files of unknown kinds, if there are any."""
        if count := self.unknown.total():
            kinds = ", ".join(f"{ending} {number}" for ending, number in self.unknown.most_common())
            what = "file of an unknown kind" if count == 1 else "files of unknown kinds"
            yield _line(count, f"{what} left out: {kinds}")


def row(uri: str, caption: Any, where: str, tally: Tally, segment: str | None = None, listed: bool = False) -> Row:
    """Create a row, with a fault if the caption is not text, or uri or caption not UTF-8. where: its place, in words.

    Of several captions, the first that is not empty is used, and the row is counted.
    """
    if not is_utf8(uri):
        fault = f"{where}: the name of the video is not UTF-8; rename it, or save the list as UTF-8"
        return Row(_escaped(uri), "", _escaped(fault), segment, listed)
    captions = several(caption)
    if captions is not None:
        tally.alternatives += len(captions) > 1
        caption = next((one for one in captions if one is not None and one != ""), None)
    if isinstance(caption, float) and math.isnan(caption):  # what pandas writes for a missing one
        caption = None
    wrong: str | None = None
    if caption is None:
        caption = ""
    elif not isinstance(caption, str):
        wrong = f"{where} holds no caption: it is of type {type(caption).__name__}, not text"
    elif len(caption) > MAX_CAPTION:
        wrong = f"{where} holds no caption: it has {len(caption):,} characters, and at most {MAX_CAPTION:,} are taken"
    elif not is_utf8(caption):
        wrong = f"{where} holds no caption: it is not UTF-8"
    return Row(uri, "" if wrong else caption.strip(), wrong, segment, listed)


def captioned(uri: str, name: str, data: bytes | Exception | None, tally: Tally) -> Row:
    """Create the row of a video with a caption file beside it.

    name, data: of the caption file; data is its bytes, the exception that reading it raised, or None without a file.
    JSON holds the caption under one of its usual names.
    """
    if data is None:
        return row(uri, None, uri, tally)
    try:
        if isinstance(data, Exception):
            raise ValueError(str(data)) from data
        if len(data) > textfiles.MAX_TEXT:
            raise ValueError(too_long(len(data)))
        caption: Any = textfiles.decode_text(data)
        if name.lower().endswith(".json"):
            caption = _caption_in(json.loads(caption))
    except (ValueError, RecursionError) as error:
        return Row(_escaped(uri), "", _escaped(f"{name} holds no caption: {error}"))
    return row(uri, caption, name, tally)


def too_long(size: int) -> str:
    """Say why a file of so many bytes is no caption."""
    return f"it has {size:,} bytes, and at most {textfiles.MAX_TEXT:,} are taken"


def _caption_in(value: Any) -> Any:
    """The caption in a JSON object, None when it has none. Raises ValueError for another type."""
    if not isinstance(value, dict):
        raise ValueError('it is not an object with "caption", "text" or "prompt"')
    names = {columns.plain(name): found for name, found in reversed(value.items())}
    usual = ("caption", "text", "prompt", *columns.CAPTION[0])
    return next((names[name] for name in map(columns.plain, usual) if names.get(name) is not None), None)


def several(caption: Any) -> list[Any] | None:
    """The captions in a list, or in text that spells one, as tables without lists do; None for a single caption."""
    if isinstance(caption, str):
        found = spelled_list(caption)
        return found if found is not None and all(isinstance(one, str) for one in found) else None
    return caption if isinstance(caption, list) else None


def spelled_list(text: str) -> list[Any] | None:
    """The list that a text spells, as JSON, Python or numpy does; None for another text."""
    if not text.startswith("[") or not text.rstrip().endswith("]"):
        return None
    for read in (json.loads, lambda text: ast.literal_eval(_as_python(text))):
        try:
            found = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
        return found if isinstance(found, list) else None
    return None


def _as_python(text: str) -> str:
    """Turn a list as numpy prints it into Python, with commas between items. Strings without a gap remain one."""
    text = _SCALAR.sub("(", text)
    if len(text) > _LONGEST_LIST:
        return text
    parts: list[str] = []
    ended: tuple[int, int] | None = None  # where an item has ended, after which no comma came
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NL:
            continue
        is_value = token.type in (tokenize.STRING, tokenize.NUMBER)
        if ended is not None and ended != token.start and (is_value or token.string == "["):
            parts.append(",")
        parts.append(token.string)
        ended = token.end if is_value or token.string == "]" else None
    return "".join(parts)


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def named(name: str) -> Iterator[None]:
    """Prefix the message of a ValueError that the block raises with a name, unless it has that prefix already."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}{str(error).removeprefix(name)}") from error


def or_fault(found: Iterator[Any], is_needed: bool, fault: Callable[[str], Any]) -> Iterator[Any]:
    """Yield the rows of a file. If it cannot be read, raise if it is needed, else yield a row with the fault."""
    try:
        yield from found
    except (ValueError, FileNotFoundError) as error:
        if is_needed:
            raise
        yield fault(f"it cannot be read: {error}")


def is_utf8(text: str) -> bool:
    """Whether text can be stored as UTF-8: it has no lone surrogates, which invalid bytes are read as."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _line(count: int, what: str) -> str:
    return f"{count:>10}  {what}"
