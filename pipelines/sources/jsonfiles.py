"""Read tables in JSON as a stream: one object per line, or an array of objects."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

_CHUNK = 1 << 16  # characters read at a time
_GAP = re.compile(r"\s*(,?)\s*")
_DECODER = json.JSONDecoder()


def records(text: io.TextIOWrapper) -> Iterator[tuple[int, Any]]:
    """Yield (line, object) of every record; for a broken one, a message instead of the object.

    After a fault in an array, the rest of it cannot be read.
    """
    number, line = 1, text.readline()
    while line and not line.strip():
        number, line = number + 1, text.readline()
    if line.lstrip().startswith("["):
        yield from _array(line, text, number)
        return
    while line:
        if line.strip():
            yield number, _object(line)
        number, line = number + 1, text.readline()


def _object(line: str) -> Any:
    try:
        line.encode()  # the reader let bytes that are not UTF-8 through, so that they spoil their own line only
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else _no_object(value)


def _no_object(value: Any) -> str:
    return f"a JSON {type(value).__name__}, not an object"


def _array(buffer: str, text: io.TextIOWrapper, number: int) -> Iterator[tuple[int, Any]]:
    """Yield the elements of an array that begins in `buffer`. number: line at which `buffer` begins."""
    at, comma = buffer.index("[") + 1, False  # comma: whether one must precede the next element
    error = "the array is not closed"
    while True:
        gap = _GAP.match(buffer, at)
        assert gap is not None
        if (closed := buffer.startswith("]", gap.end())) or (comma and gap.end() < len(buffer) and not gap[1]):
            if not closed:
                yield number, "not JSON (a comma is missing), and what follows is not read"
            return
        if gap.end() < len(buffer):
            try:
                value, end = _DECODER.raw_decode(buffer, gap.end())
            except (ValueError, RecursionError) as found:
                error = getattr(found, "msg", str(found))
            else:
                number += buffer.count("\n", at, gap.end())
                yield number, value if isinstance(value, dict) else _no_object(value)
                number += buffer.count("\n", gap.end(), end)
                at, comma, error = end, True, "the array is not closed"
                continue
        read = text.read(max(_CHUNK, len(buffer)))  # twice as much each time: a record may be long
        if not read:
            yield number + buffer.count("\n", at, gap.end()), f"not JSON ({error}), and what follows is not read"
            return
        buffer, at = buffer[at:] + read, 0
