"""Segments of videos: start and end as a list gives them, stored as text, and the frames that they cover.

The text is a media fragment (W3C): `t=1.5,3` in seconds, or `frames=30,60`. The end is exclusive, and may be left out.
"""

import datetime
import math
import re
from typing import Any

import numpy as np

from pipelines.sources.rows import spelled_list

_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:[.,]\d*)?)")
_NUMBER = re.compile(r"(\d+(?:[.,]\d*)?|[.,]\d+)( ?s)?")
_TEXT = re.compile(r"(?P<unit>t|frames)=(?P<start>[\d.]+)(?:,(?P<end>[\d.]+))?")


def segment(start: Any, end: Any, unit: str, is_length: bool = False) -> str | None:
    """The text of a segment from two cells of a row; None, for the whole video, when both are empty.

    unit: "seconds", "milliseconds" or "frames". An empty start means the video's beginning, an empty end its end.
    is_length: `end` is the length of the segment. Raises ValueError for cells that are not times, or in wrong order.
    """
    first, last = _number(start, unit), _number(end, unit)
    if first is None and last is None:
        return None
    first = first or 0.0
    if is_length and last is not None:
        last, end = first + last, f"{_shown(first + last)}"
    if last is not None and last <= first:
        raise ValueError(f"the segment ends at {end}, not after its start at {0 if start is None else start}")
    shown = _shown(first) if last is None else f"{_shown(first)},{_shown(last)}"
    return f"frames={shown}" if unit == "frames" else f"t={shown}"


def pairs(cell: Any) -> list[Any] | None:
    """The pairs of start and end in a list, or in text that spells one; a single pair counts as a list of one.

    Empty for a list of something else; None for an empty list and for a cell without a list, such as a date.
    """
    found = spelled_list(cell.strip()) if isinstance(cell, str) else cell
    if not isinstance(found, list) or not found:
        return None
    if not any(isinstance(one, (list, tuple, dict)) for one in found):
        found = [found] if any(_is_time(one) for one in found) else [()]  # labels are no times
    return found if all(isinstance(one, (list, tuple)) and len(one) == 2 for one in found) else []


def _is_time(cell: Any) -> bool:
    try:
        return _number(cell, "seconds") is not None
    except ValueError:
        return False


def _number(cell: Any, unit: str) -> float | None:
    """Parse a cell as seconds or frames; None if it is empty. Raises ValueError."""
    if isinstance(cell, datetime.timedelta):
        return cell.total_seconds()
    if isinstance(cell, datetime.time):
        cell = cell.isoformat()
    if isinstance(cell, str):
        cell = cell.strip()
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return None
    text = str(cell)
    number = None
    if not isinstance(cell, bool) and isinstance(cell, (int, float)):
        number = float(cell)
    elif plain := _NUMBER.fullmatch(text):
        number = float(plain[1].replace(",", "."))
    elif unit == "seconds" and (clock := _CLOCK.fullmatch(text)):
        hours, minutes, seconds = clock.groups()
        number = 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))
    if number is None or not 0 <= number < math.inf or (unit == "frames" and number != int(number)):
        right = {"seconds": "seconds or HH:MM:SS.mmm", "frames": "the number of a frame"}.get(unit, unit)
        raise ValueError(f"{text[:80]!r} is no start or end of a segment; write {right}")
    return number / 1000 if unit == "milliseconds" else number


def _shown(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")


def frames_of(text: str, fps: float, video_frames: int, seconds: np.ndarray | None = None) -> range:
    """The frames of a video within a segment; if it begins after the end, empty with `video_frames` as its start.

    seconds: when each frame is shown, counted from the first, if the frame rate varies; None if it is always `fps`.
    """
    found = _TEXT.fullmatch(text)
    assert found, text

    def number(time: float) -> int:
        """The first frame shown at or after a time."""
        if found["unit"] == "t" and seconds is not None:
            # A millisecond earlier, because containers and lists round or cut times, to milliseconds at worst.
            return int(np.searchsorted(seconds, time - 1e-3))
        rate = 1.0 if found["unit"] == "frames" else fps
        return math.ceil(time * rate - 1e-3)  # with a tolerance of a thousandth of a frame for rounding

    first, end = (number(float(found[name])) if found[name] else video_frames for name in ("start", "end"))
    return range(min(first, video_frames), min(end, video_frames))
