"""Tables as programs and people write them: encodings, delimiters, quotes that never close, JSON, late columns."""

import csv
import gzip
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import sources
from pipelines.sources import textfiles
from tests.pipelines.sources.conftest import Listed

ROWS = [("a.mp4", "a cat, ünï"), ("b.mp4", "two\nlines")]


def csv_text(delimiter: str, before: str = "") -> str:
    lines = [("path", "caption"), *((name, f'"{caption}"') for name, caption in ROWS)]
    return before + "".join(f"{delimiter.join(line)}\r\n" for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("before", ["", "\r\n\r\n", "sep={}\r\n", "\r\nSEP={}\r\n\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_encoding_and_delimiter_gives_the_same_rows(delimiter: str, before: str, encoding: str) -> None:
    data = csv_text(delimiter, before.format(delimiter)).encode(encoding)
    table = textfiles.Table(textfiles.as_text(io.BytesIO(data)))
    assert table.header == ["path", "caption"]
    assert [tuple(fields) for _, fields in table.rows()] == ROWS


@pytest.mark.parametrize("mark", ["utf-16", b"\xfe\xff"])
def test_a_byte_order_mark_says_which_order(mark: str | bytes) -> None:
    data = "a cat".encode("utf-16") if mark == "utf-16" else b"\xfe\xff" + "a cat".encode("utf-16-be")
    assert textfiles.decode_text(data) == "a cat"


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.csv.gz", "list.json", "list.jsonl", "list.json.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_every_ending_are_read_in_every_encoding(
    tmp_path: Path, listed: Listed, name: str, encoding: str
) -> None:
    text = csv_text("\t" if "tsv" in name else ";")
    if "json" in name:
        records = [{"path": path, "caption": caption} for path, caption in ROWS]
        text = "\n".join(map(json.dumps, records)) if "jsonl" in name else json.dumps(records, indent=2)
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    rows = listed(tmp_path / name)
    assert [(Path(row["uri"]).name, row["caption"], row["fault"]) for row in rows] == [(*row, None) for row in ROWS]


def test_commas_in_captions_do_not_make_a_comma_the_delimiter() -> None:
    table = textfiles.Table(iter(["path\tcaption, in English\n", "a.mp4\ta, b, c\n", "b.mp4\td\n"]))
    assert (table.delimiter, [fields for _, fields in table.rows()]) == ("\t", [["a.mp4", "a, b, c"], ["b.mp4", "d"]])


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ('p,c\na,"open\nb,x\nc,y\n', [(3, "b"), (4, "c")], [2]),  # to the end of the file
        ('p,c\na,"open\nb,x\nc,"y"\nd,z\n', [(3, "b"), (4, "c"), (5, "d")], [2]),  # to the next quote
        ('p,c\na,x\nb,"never', [(2, "a")], [3]),
        ('p,c\na,"open\n' + "b,x\n" * 40_000, [(line, "b") for line in range(3, 40_003)], [2]),  # past csv's limit
        ('p,c\na,5" x\nb,"y" z\n"c ""d""","two\nlines"\ne,\n', [(2, "a"), (3, "b"), (4, 'c "d"'), (6, "e")], []),
        ('p,c\na,"x"\nb,y,,\nc,y,z\n', [(2, "a"), (3, "b")], [4]),
    ],
)
def test_a_quote_that_never_closes_costs_its_own_line(text: str, good: list[tuple[int, str]], bad: list[int]) -> None:
    rows = list(textfiles.Table(iter(text.splitlines(keepends=True))).rows())
    assert [(line, fields[0]) for line, fields in rows if isinstance(fields, list)] == good
    assert [line for line, fields in rows if isinstance(fields, str)] == bad


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=6), st.sampled_from(",;\t|"))
def test_what_the_csv_module_writes_is_read_as_it_was(rows: list[tuple[str, str]], delimiter: str) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("path", "caption"), *rows])
    try:
        data = buffer.getvalue().encode()
    except UnicodeEncodeError:
        return
    table = textfiles.Table(textfiles.as_text(io.BytesIO(data)))
    assert [tuple(fields) for _, fields in table.rows()] == rows


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_an_array_of_json_is_read_as_a_stream(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textfiles, "_CHUNK", chunk)
    records = [{"path": f"{i}.mp4", "caption": 'a "[]{},\n'} for i in range(20)]
    for text in (json.dumps(records), json.dumps(records, indent=1), "\n [ \n" + ",\n".join(map(json.dumps, records))):
        found = list(textfiles.json_records(io.TextIOWrapper(io.BytesIO(text.encode()))))
        assert [record for _, record in found[:20]] == records
        assert found[20:] == ([] if text.endswith("]") else [(22, found[20][1])])


def test_a_fault_in_an_array_of_json_names_its_line() -> None:
    for text, line, fault in (
        ('[{"a": 1},\n{"b" 2},\n{"c": 3}]', 2, "not JSON (Expecting ':' delimiter), and what follows is not read"),
        ('[{"a": 1}\n{"b": 2}]', 1, "not JSON (a comma is missing), and what follows is not read"),
        ('[{"a": 1},\n7]', 2, "a JSON int, not an object"),
        ('[{"a": 1}', 1, "not JSON (the array is not closed), and what follows is not read"),
    ):
        found = list(textfiles.json_records(io.TextIOWrapper(io.BytesIO(text.encode()))))
        assert found == [(1, {"a": 1}), (line, fault)]


@pytest.mark.parametrize("name", ["list.csv.gz", "list.jsonl.gz"])
def test_a_line_without_end_is_damage_and_the_lines_before_it_are_read(
    tmp_path: Path, listed: Listed, name: str
) -> None:
    line = b"a.mp4\n" if "csv" in name else b'{"video": "a.mp4"}\n'
    head = b"video\n" * ("csv" in name) + 200 * line  # columns are found in the first hundred
    with gzip.open(tmp_path / name, "wb", 1) as file:
        file.write(head)
        for _ in range(40):
            file.write(b" " * (1 << 20))
    rows = listed(tmp_path / name)
    assert rows[0]["uri"] == str(tmp_path / "a.mp4")
    assert "a line has more than 16,777,216 characters" in rows[1]["fault"]
    assert len(rows) == 2  # the video is there once


def test_an_array_of_json_may_be_one_line_but_no_record_is_without_end(tmp_path: Path, listed: Listed) -> None:
    entries = [{"video": f"{number}.mp4", "caption": "x" * 9000} for number in range(2000)]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    assert len(listed(tmp_path / "list.json")) == 2000
    (tmp_path / "list.json").write_text('[{"video": "a.mp4"}, {"video": "' + "b" * (40 << 20))
    with pytest.raises(ValueError, match="a line has more than 16,777,216 characters"):
        listed(tmp_path / "list.json")


HEAD = [{"path": f"{number}.mp4"} for number in range(150)]  # more than the records read to learn the columns


def rows_after(tmp_path: Path, *late: dict[str, Any], tally: sources.Tally | None = None) -> list[dict[str, Any]]:
    """Rows of a list with these records after those of HEAD."""
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, [*HEAD, *late])))
    tables = sources.iter_videos(str(tmp_path / "list.jsonl"), tally=tally)
    rows = [{"segment": None, **row} for table in tables for row in table.to_pylist()]
    assert [row["fault"] for row in rows[: len(HEAD)]] == [None] * len(HEAD)
    return rows[len(HEAD) :]


def test_columns_that_begin_late_are_read(tmp_path: Path) -> None:
    tally = sources.Tally()
    late = [
        {"path": "a.mp4", "Caption": "a dog"},
        {"path": "b.mp4", "title": "a cat", "blip2_caption": "a bird"},
        {"path": "c.mp4", "start": 1, "end": 2},
        {"path": "c.mp4", "start_ms": 2000, "duration_ms": 500, "text": "again"},
        {"contentUrl": "https://host/7.mp4", "videoid": "7", "page_dir": "p", "name": "a fish"},
        {"path": "d.mp4"},
    ]
    rows = rows_after(tmp_path, *late, tally=tally)
    assert [(Path(row["uri"]).name, row["caption"], row["segment"], row["fault"]) for row in rows] == [
        ("a.mp4", "a dog", None, None),
        ("b.mp4", "a bird", None, None),
        ("c.mp4", "", "t=1,2", None),
        ("c.mp4", "again", "t=2,2.5", None),
        ("7.mp4", "a fish", None, None),
        ("d.mp4", "", None, None),
    ]
    assert (tally.captioned, tally.segments, tally.notes) == (4, 2, [])


def test_a_late_column_of_a_meaning_that_another_has_is_a_fault_of_its_row(tmp_path: Path) -> None:
    lines = [{"path": "a.mp4", "text": "a", "caption": "b"}, {"path": "b.mp4", "text": "c", "caption": ""}]
    assert [(row["caption"], row["fault"]) for row in rows_after(tmp_path, *lines)] == [
        ("", "list.jsonl line 151: with its text, caption, list.jsonl has several columns that may hold the caption: "
             "text, caption; name the right one with --caption-column"),
        ("c", None),
    ]  # fmt: skip


def test_a_record_with_late_columns_is_read_by_those_that_it_fills(tmp_path: Path, listed: Listed) -> None:
    """Two lists, one after the other: captions are called text in the first, and title or caption in the second."""
    head = [{"path": f"{number}.mp4", "text": "x"} for number in range(150)]
    late = [{"path": "a.mp4", "caption": "a dog"}, {"path": "b.mp4", "title": "a cat", "text": ""}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, [*head, *late])))
    assert [(row["caption"], row["fault"]) for row in listed(tmp_path / "list.jsonl")[150:]] == [
        ("a dog", None), ("a cat", None),
    ]  # fmt: skip


def test_a_late_start_without_an_end_is_noted_once_whatever_its_spellings(tmp_path: Path) -> None:
    tally = sources.Tally()
    late = [{"path": f"s{number}.mp4", "start" + "." * number: 1} for number in range(60)]
    assert {row["fault"] for row in rows_after(tmp_path, *late, tally=tally)} == {None}
    assert tally.notes == [
        "list.jsonl has the column start and none for the end of a segment; whole videos are taken",
        "list.jsonl has no column for the caption; found are path; name it with --caption-column",
    ]


def test_hostile_names_of_late_columns_cost_little(tmp_path: Path) -> None:
    many = {f"{number}_caption": "x" for number in range(100_000)}
    late = [{"path": "a.mp4", **many}, {"path": "b.mp4", "x" * 100_000 + "caption": "y", "\ud800caption": "z"}]
    began = time.process_time()
    first, second = rows_after(tmp_path, *late, *({"path": f"c{n}.mp4", f"other{n}": "x"} for n in range(20_000)))[:2]
    assert time.process_time() - began < 10
    assert first["fault"].startswith("list.jsonl line 151: it has more than 100 columns with usual names")
    assert (second["caption"], second["fault"]) == ("", None)
