"""Columns that begin late: names in a record of JSON that the first records of its table lack.

The columns of JSON are learned from its first records (tables.py), because a table may have millions. A later record
may bring others. Its columns are then chosen again, for this record alone, so that nothing in it is silently ignored,
and what a record means does not depend on others that came before it.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from pipelines.sources import columns
from pipelines.sources.rows import is_utf8

Choice = TypeVar("Choice")

# Bounds on what names that somebody made up can cost.
_LONGEST = 200  # characters of a name: longer ones are not usual names
_MOST = 100  # late columns of a record
_REMEMBERED = 64  # choices that are not made again


class _Ambiguous(NamedTuple):
    message: str  # which columns compete, and the remedy


class Chooser(Generic[Choice]):
    """Chooses the columns of each record of a table. first: the choice for records without late columns."""

    def __init__(
        self,
        found: Sequence[str],
        choose: Callable[[list[str]], Choice],
        usual: Iterable[columns.Groups],
        asked: Iterable[str | None],
    ) -> None:
        """Choose for the columns found. Raises ValueError like `choose`.

        usual, asked: usual names, and those that flags give; a late column of another name has no meaning.
        """
        self.first = choose([*found])
        self._choose, self._choose_again = choose, lru_cache(_REMEMBERED)(self._again)
        self._order, self._found = tuple(found), frozenset(found)
        self._asked = {columns.plain(name) for name in asked if name is not None}
        names = [name for groups in usual for group in groups for name in group]
        names += [name for name in asked if name is not None]
        self._names = {columns.plain(name) for name in names if not name.startswith("*")}
        self._endings = tuple(columns.plain(name) for name in names if name.startswith("*"))

    def choice(self, record: dict[str, Any]) -> Choice:
        """Choose for a record. Raises ValueError when its late columns leave no choice."""
        if self._found.issuperset(record):
            return self.first
        late = tuple(itertools.islice((name for name in record if self._is_late(name, record[name])), _MOST + 1))
        if len(late) > _MOST:
            raise ValueError(f"it has more than {_MOST} columns with usual names that the first records lack")
        if not late:
            return self.first
        # Of the first records' columns, those that this record fills, and those that flags name.
        own = (name for name in self._order if record.get(name) not in (None, "") or columns.plain(name) in self._asked)
        chosen = self._choose_again((*own, *late))
        if isinstance(chosen, _Ambiguous):
            raise ValueError(f"with its {columns.listed(late)}, {chosen.message}")
        return chosen

    def _again(self, names: tuple[str, ...]) -> "Choice | _Ambiguous":
        try:
            return self._choose([*names])
        except ValueError as error:
            return _Ambiguous(str(error))  # remembered like a choice: many records may be alike

    def _is_late(self, name: str, value: Any) -> bool:
        """Whether a column is late and has a usual name and a value: without one, nothing is lost."""
        if name in self._found or value is None or value == "" or len(name) > _LONGEST or not is_utf8(name):
            return False
        plain = columns.plain(name)
        return plain in self._names or plain.endswith(self._endings)
