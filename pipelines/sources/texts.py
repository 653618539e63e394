"""Decode text files: UTF-8 and UTF-16, with or without a byte order mark, and UTF-32 with one."""

import codecs
import io
from typing import BinaryIO

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HEAD = 64  # bytes inspected to find the encoding


def encoding_of(head: bytes) -> str:
    """Find the encoding of a text that begins with these bytes: without a mark, UTF-8 unless every other byte is 0."""
    for mark, name in _MARKS.items():
        if head.startswith(mark) and (mark == codecs.BOM_UTF8 or len(head) > len(mark)):
            return name
    even, odd = head[:_HEAD:2], head[1:_HEAD:2]
    if odd and not any(odd) and all(even[: len(odd)]):
        return "utf-16-le"
    if odd and not any(even[: len(odd)]) and all(odd):
        return "utf-16-be"
    return "utf-8"


def decode(data: bytes) -> str:
    """Decode the bytes of a whole file. Raises UnicodeDecodeError, a ValueError, for another encoding."""
    return data.decode(encoding_of(data))


def reader(file: BinaryIO) -> io.TextIOWrapper:
    """Open a binary file as text. Bytes that are not UTF-8 become lone surrogates, and spoil their own row only."""
    buffered = io.BufferedReader(file)  # type: ignore[type-var]
    encoding = encoding_of(buffered.peek(_HEAD)[:_HEAD])
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return io.TextIOWrapper(buffered, encoding, errors, newline="")
