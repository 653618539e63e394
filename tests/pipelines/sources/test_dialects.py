"""Lists as other programs write them: numpy and pandas, Spark and MySQL, Hugging Face, the makers of Panda-70M."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import sources
from pipelines.sources import textfiles
from tests.pipelines.sources.conftest import Listed


def read(path: Path, text: str) -> tuple[list[dict[str, Any]], sources.Tally]:
    """The rows of a list with this text, and what was counted."""
    path.write_text(text)
    tally = sources.Tally()
    return [row for table in sources.iter_videos(str(path), tally=tally) for row in table.to_pylist()], tally


@pytest.mark.parametrize(
    ("spelled", "first", "count"),
    [
        ("['a cat walks' 'a dog runs']", "a cat walks", 2),  # numpy puts no comma
        ("['a cat walks'\n 'a dog runs'\n \"it's\"]", "a cat walks", 3),  # and breaks lines
        ("['it''s' 'two']", "its", 2),  # what touches is one string, as in Python
        ("['a cat', 'a dog']", "a cat", 2),
        ("['only']", "only", 1),
        ("['a cat' walks]", "['a cat' walks]", 1),  # no list
        ("[1 2]", "[1 2]", 1),
    ],
)
def test_captions_without_commas_between_them_are_several(tmp_path: Path, spelled: str, first: str, count: int) -> None:
    rows, tally = read(tmp_path / "list.jsonl", json.dumps({"path": "a.mp4", "caption": spelled}))
    assert [row["caption"] for row in rows] == [first]
    assert tally.alternatives == (count > 1)


def test_a_caption_of_nan_is_none(tmp_path: Path) -> None:
    rows, tally = read(tmp_path / "list.jsonl", '{"path": "a.mp4", "caption": NaN}\n{"path": "b.mp4", "caption": "x"}')
    assert [(row["caption"], row["fault"]) for row in rows] == [("", None), ("x", None)]
    assert (tally.uncaptioned, tally.captioned) == (1, 1)


def test_a_space_after_the_comma_does_not_make_quotes_part_of_a_caption(tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "list.csv").write_text('path, caption\na.mp4, "a cat"\nb.mp4,  "a cat, black"\nc.mp4, a 5" cat\n')
    assert [row["caption"] for row in listed(tmp_path / "list.csv")] == ["a cat", "a cat, black", 'a 5" cat']


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        (r'"a \"red\" car"', 'a "red" car'),
        (r'"\"Go\", he said"', '"Go", he said'),  # a comma between the quotes
        (r'"a screen of 5\""', 'a screen of 5"'),  # without escapes the field would run on
        ('"two \\"lines\\"\n, of \\"one\\" caption"', 'two "lines"\n, of "one" caption'),
        (r'"C:\Temp\\"', r"C:\Temp\\"),  # the backslash itself is escaped, so the quote closes
        (r'"C:\Temp\"', "C:\\Temp\\"),  # valid without escapes
        (r"a \"red\" car", r"a \"red\" car"),  # not quoted: nothing is escaped
    ],
)
def test_a_backslash_escapes_a_quote_where_the_line_is_else_invalid(line: str, caption: str) -> None:
    text = f"path,caption\nfilms\\a.mp4,{line}\nb.mp4,next\n"
    table = textfiles.Table(iter(text.splitlines(keepends=True)))
    assert [fields for _, fields in table.rows()] == [["films\\a.mp4", caption], ["b.mp4", "next"]]


def test_an_escaped_quote_in_a_field_that_never_closes_costs_its_own_line() -> None:
    text = 'path,caption\na.mp4,"a \\"red\\" car\nb.mp4,next\nc.mp4,"last"\n'
    assert list(textfiles.Table(iter(text.splitlines(keepends=True))).rows()) == [
        (2, "a quote is escaped by a backslash, and not closed"),
        (3, ["b.mp4", "next"]),
        (4, ["c.mp4", "last"]),
    ]
