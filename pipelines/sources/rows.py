"""One video of a source: (uri, caption, fault), whatever it was read from.

Knows what a caption is. A fault of one video stands in its row, and becomes a reject later: nothing here raises.
"""

import json
from typing import Any

Row = tuple[str, str, str | None]


def row(uri: str, caption: Any, where: str) -> Row:
    """A row, with a fault when the caption is no text or either is not UTF-8. where: names the place, in the fault."""
    if not _is_utf8(uri):
        fault = f"{where}: the name of the video is not UTF-8; rename it, or save the list as UTF-8"
        return _escaped(uri), "", _escaped(fault)
    if caption is None:
        return uri, "", None
    if not isinstance(caption, str):
        return uri, "", f"{where} holds no caption: it is of type {type(caption).__name__}, not text"
    if not _is_utf8(caption):
        return uri, "", f"{where} holds no caption: it is not UTF-8"
    return uri, caption.strip(), None


def captioned(uri: str, name: str, data: bytes | Exception | None) -> Row:
    """The row of a video with a .txt or .json beside it: its name, and what reading it gave (None: there is none).

    JSON holds the caption under "caption" or "text".
    """
    if data is None:
        return row(uri, None, uri)
    try:
        if isinstance(data, Exception):
            raise ValueError(str(data)) from data
        text: Any = data.decode("utf-8")
        if name.endswith(".json"):
            value = json.loads(text)
            if not isinstance(value, dict):
                raise ValueError('it is not an object with "caption" or "text"')
            text = value.get("caption", value.get("text"))
    except (ValueError, RecursionError) as error:
        return _escaped(uri), "", _escaped(f"{name} holds no caption: {error}")
    return row(uri, text, name)


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: what Python makes of bytes that are not UTF-8
        return False
    return True
