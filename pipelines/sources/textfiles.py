"""Read text tables: CSV as programs and people write it, and JSON, one object per line or an array of objects.

Texts are UTF-8 or UTF-16, with or without a byte order mark, or UTF-32 with one. CSV's delimiter (comma, semicolon, tab
or |) is inferred from the header, or given by a line `sep=;` before it; spaces after it are skipped. Blank lines are
skipped. A quote in a quoted field is doubled, or escaped by a backslash, as Spark and MySQL write it. A quote that
never closes spoils its own line, not those after it.
"""

import codecs
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_TRIED = 50  # lines compared when the header alone does not decide
_ESCAPED = re.compile(r'(?<!\\)((?:\\\\)*)\\"')  # a quote after an odd number of backslashes
_SAID = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


class Lines:
    """Iterator over lines that can be given back. `taken` holds the lines since `begin`."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._back = lines, deque[str]()
        self.taken: list[str] = []
        self.number = 0  # of the last line taken, counted from 1

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def begin(self) -> None:
        """Start a record at the next line."""
        self.taken = []

    def give_back(self, count: int) -> None:
        """Give back the last lines taken, which will be returned again."""
        if count:
            self._back.extendleft(reversed(self.taken[-count:]))
            self.number -= count


class Table:
    """A delimited table. The header is read at once, `rows` yields the rest."""

    def __init__(self, text: Iterator[str]) -> None:
        """Read the header. Raises ValueError when the first line is not one."""
        self._lines = Lines(iter(text))
        self.delimiter = self._find_delimiter()
        self.header: list[str] = []
        for _, fields, fault in self._records():
            if fault:
                raise ValueError(f"the first line is no header: {fault}")
            if any(field.strip() for field in fields):
                self.header = [name.strip() for name in fields]
                break

    def rows(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield (line, fields) of every row that is not blank; for a broken row, a message instead of fields."""
        for number, fields, fault in self._records():
            if fault:
                yield number, fault
            elif len(fields) >= len(self.header) and not any(fields[len(self.header) :]):
                yield number, fields  # surplus fields are empty
            elif fields:
                yield (
                    number,
                    (
                        f"{len(fields)} fields where the header has {len(self.header)}; is a "
                        f"{DELIMITERS.get(self.delimiter, self.delimiter)} or quote unescaped?"
                    ),
                )

    def _records(self) -> Iterator[tuple[int, list[str], str | None]]:
        """Yield (first line, fields, fault) of every record."""
        lines = self._lines
        reader = _reader(lines, self.delimiter)
        while True:
            lines.begin()
            try:
                fields, fault = next(reader), None
            except StopIteration:
                return
            except csv.Error as error:
                fields, fault = [], str(error)
            begun = lines.number - len(lines.taken) + 1
            if any('\\"' in line for line in lines.taken) and _strict_error(lines.taken, self.delimiter):
                fields, fault = self._again_with_escapes()
            elif not _is_closed(lines.taken, self.delimiter):
                fields, fault = [], "a quote that opens here never closes, or closes amid text"
                lines.give_back(len(lines.taken) - 1)
            yield begun, fields, fault

    def _again_with_escapes(self) -> tuple[list[str], str | None]:
        """Read the last record again, with backslashes before quotes: its fields, or a fault that costs one line."""
        lines = self._lines
        lines.give_back(len(lines.taken))
        lines.begin()
        doubled = (_ESCAPED.sub(r'\1""', line) for line in lines)
        try:
            return next(_reader(doubled, self.delimiter, strict=True)), None
        except csv.Error:
            lines.give_back(len(lines.taken) - 1)
            return [], "a quote is escaped by a backslash, and not closed"

    def _find_delimiter(self) -> str:
        """Find the delimiter. Skips blank lines and a line with `sep=`, and gives back the header."""
        lines = self._lines
        lines.begin()
        header = next((line for line in lines if line.strip()), "")
        if said := _SAID.fullmatch(header):
            return said[1]
        shown = itertools.islice(lines, _TRIED)
        following = [line for line in shown if line.strip()]
        lines.give_back(len(lines.taken) - lines.taken.index(header) if header else 0)
        possible = [one for one in DELIMITERS if len(_fields(header, one)) > 1]
        if len(possible) < 2:
            return possible[0] if possible else ","
        # The one by which most lines have as many fields as the header.
        counts = {one: [len(_fields(line, one)) for line in (header, *following)] for one in possible}
        return max(possible, key=lambda one: counts[one].count(counts[one][0]))


def _reader(lines: Iterable[str], delimiter: str, strict: bool = False) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != " ", strict=strict)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(_reader([line], delimiter), [])
    except csv.Error:
        return []


def _is_closed(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the quotes of a record are valid; for a single line, only whether they are closed."""
    if len(lines) < 2 and sum(line.count('"') for line in lines) % 2 == 0:
        return True
    error = _strict_error(lines, delimiter)
    return error is None or (len(lines) < 2 and "unexpected end" not in error)


def _strict_error(lines: Sequence[str], delimiter: str) -> str | None:
    """Describe the invalid quotes of a record; None when they are valid."""
    try:
        list(_reader(io.StringIO("".join(lines), newline=""), delimiter, strict=True))
    except csv.Error as error:
        return str(error)
    return None


_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_LINE = 16 << 20  # characters of a line, and of a record of JSON
MAX_TEXT = 1 << 20  # bytes of a file with one caption
_PEEKED = 64  # bytes inspected to find the encoding


class LongLineError(ValueError):
    """A line of more than MAX_LINE characters, as in a file of zeros that was compressed to a few kB."""

    def __init__(self) -> None:
        super().__init__(f"a line has more than {MAX_LINE:,} characters")


class _Text(io.TextIOWrapper):
    """Text file of which iteration, and readline without a size, raise LongLineError."""

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        line = super().readline(size if size >= 0 else MAX_LINE + 1)
        if size < 0 and len(line) > MAX_LINE:
            raise LongLineError
        return line


def encoding_of(head: bytes) -> str:
    """Find the encoding of a text that begins with these bytes: without a mark, UTF-8 unless every other byte is 0."""
    for mark, name in _MARKS.items():
        if head.startswith(mark) and (mark == codecs.BOM_UTF8 or len(head) > len(mark)):
            return name
    even, odd = head[:_PEEKED:2], head[1:_PEEKED:2]
    if odd and not any(odd) and all(even[: len(odd)]):
        return "utf-16-le"
    if odd and not any(even[: len(odd)]) and all(odd):
        return "utf-16-be"
    return "utf-8"


def decode_text(data: bytes) -> str:
    """Decode the bytes of a whole file. Raises UnicodeDecodeError, a ValueError, for another encoding."""
    return data.decode(encoding_of(data))


def as_text(file: BinaryIO) -> io.TextIOWrapper:
    """Open a binary file as text. Bytes that are not UTF-8 become lone surrogates, and spoil their own row only."""
    buffered = io.BufferedReader(file)  # type: ignore[type-var]
    encoding = encoding_of(buffered.peek(_PEEKED)[:_PEEKED])
    errors = "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass"
    return _Text(buffered, encoding, errors, newline="")


_CHUNK = 1 << 16  # characters read at a time
_GAP = re.compile(r"\s*(,?)\s*")
_DECODER = json.JSONDecoder()


def json_records(text: io.TextIOWrapper) -> Iterator[tuple[int, Any]]:
    """Yield (line, object) of every record; for a broken one, a message instead of the object.

    After a fault in an array, the rest of it cannot be read.
    """
    number, line = 1, text.readline(_CHUNK)
    while line and not line.strip():
        number, line = number + line.count("\n"), text.readline(_CHUNK)
    if line.lstrip().startswith("["):  # the whole array may be one line
        yield from _array(line, text, number)
        return
    if line and not line.endswith("\n"):
        line += text.readline()
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
        if len(buffer) - at > MAX_LINE:
            raise LongLineError
        read = text.read(max(_CHUNK, len(buffer)))  # twice as much each time: a record may be long
        if not read:
            yield number + buffer.count("\n", at, gap.end()), f"not JSON ({error}), and what follows is not read"
            return
        buffer, at = buffer[at:] + read, 0
