"""Tables in text with a delimiter: CSV as programs and people write it.

The delimiter (comma, semicolon, tab or |) is found from the header, or a line `sep=;` before it says it; blank lines do
not count. A quote that never closes costs its own line, not those after it. Knows lines and fields, not what they mean.
"""

import csv
import io
import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_TRIED = 50  # lines that are looked at when the header does not decide
_SAID = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


class Lines:
    """Lines of a text that can be given back, each with its number from 1; `taken` are those since `begin`."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self._back = lines, deque[str]()
        self.taken: list[str] = []
        self.number = 0  # of the last line taken

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self._back.popleft() if self._back else next(self._lines)
        self.taken.append(line)
        self.number += 1
        return line

    def begin(self) -> None:
        """A record begins with the next line."""
        self.taken = []

    def give_back(self, count: int) -> None:
        """The last lines taken come again."""
        if count:
            self._back.extendleft(reversed(self.taken[-count:]))
            self.number -= count


class Table:
    """A table of which the header is read; `rows` gives the rest."""

    def __init__(self, text: Iterator[str]) -> None:
        """Raises ValueError when the first line is no header."""
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
        """(line, fields) of every row that is not blank; instead of fields, a sentence about a row that is broken."""
        for number, fields, fault in self._records():
            if fault:
                yield number, fault
            elif len(fields) >= len(self.header) and not any(fields[len(self.header) :]):
                yield number, fields  # and nothing but empty fields after them
            elif fields:
                yield (
                    number,
                    (
                        f"{len(fields)} fields where the header has {len(self.header)}; is a "
                        f"{DELIMITERS.get(self.delimiter, self.delimiter)} or quote unescaped?"
                    ),
                )

    def _records(self) -> Iterator[tuple[int, list[str], str | None]]:
        """(line of its beginning, fields, what is wrong) of every record."""
        lines = self._lines
        reader = csv.reader(lines, delimiter=self.delimiter)
        while True:
            lines.begin()
            try:
                fields, fault = next(reader), None
            except StopIteration:
                return
            except csv.Error as error:
                fields, fault = [], str(error)
            begun = lines.number - len(lines.taken) + 1
            if not _is_closed(lines.taken, self.delimiter):
                fields, fault = [], "a quote that opens here never closes, or closes amid text"
                lines.give_back(len(lines.taken) - 1)
            yield begun, fields, fault

    def _find_delimiter(self) -> str:
        """What separates fields. Takes blank lines and a line with `sep=`, and gives back the header."""
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
        return max(possible, key=lambda one: _agreeing(header, following, one))


def _agreeing(header: str, lines: Sequence[str], delimiter: str) -> int:
    """How many lines have as many fields as the header."""
    expected = len(_fields(header, delimiter))
    return sum(len(_fields(line, delimiter)) == expected for line in lines)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _is_closed(lines: Sequence[str], delimiter: str) -> bool:
    """Whether the quotes of a record are in order; of one line, only whether they are closed."""
    raw = "".join(lines)
    if len(lines) < 2 and raw.count('"') % 2 == 0:
        return True
    try:
        list(csv.reader(io.StringIO(raw, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return len(lines) < 2 and "unexpected end" not in str(error)
    return True
