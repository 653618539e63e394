"""Rows of a source: one video, or a segment of one, with its caption.

A fault of one video is stored in its row and becomes a reject later; rows are made without raising.
"""

import ast
import json
from typing import Any, NamedTuple

from pipelines.dataset.records import name_of
from pipelines.sources import columns, texts
from pipelines.sources.tally import Tally


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


def row(uri: str, caption: Any, where: str, tally: Tally, segment: str | None = None, listed: bool = False) -> Row:
    """Create a row, with a fault if the caption is not text, or uri or caption not UTF-8. where: its place, in words.

    Of several captions, the first that is not empty is used, and the row is counted.
    """
    if not is_utf8(uri):
        fault = f"{where}: the name of the video is not UTF-8; rename it, or save the list as UTF-8"
        return Row(_escaped(uri), "", _escaped(fault), segment, listed)
    several = _several(caption)
    if several is not None:
        tally.alternatives += len(several) > 1
        caption = next((one for one in several if one is not None and one != ""), None)
    wrong: str | None = None
    if caption is None:
        caption = ""
    elif not isinstance(caption, str):
        wrong = f"{where} holds no caption: it is of type {type(caption).__name__}, not text"
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
        caption: Any = texts.decode(data)
        if name.lower().endswith(".json"):
            caption = _caption_in(json.loads(caption))
    except (ValueError, RecursionError) as error:
        return Row(_escaped(uri), "", _escaped(f"{name} holds no caption: {error}"))
    return row(uri, caption, name, tally)


def _caption_in(value: Any) -> Any:
    """The caption in a JSON object, None when it has none. Raises ValueError for another type."""
    if not isinstance(value, dict):
        raise ValueError('it is not an object with "caption", "text" or "prompt"')
    names = {columns.plain(name): found for name, found in reversed(value.items())}
    usual = ("caption", "text", "prompt", *columns.CAPTION[0])
    return next((names[name] for name in map(columns.plain, usual) if names.get(name) is not None), None)


def _several(caption: Any) -> list[Any] | None:
    """The captions in a list, or in text that spells one, as tables without lists do; None for a single caption."""
    if isinstance(caption, str) and caption.startswith("[") and caption.rstrip().endswith("]"):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(caption)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None
        return None
    return caption if isinstance(caption, list) else None


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def is_utf8(text: str) -> bool:
    """Whether text can be stored as UTF-8: it has no lone surrogates, which invalid bytes are read as."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
