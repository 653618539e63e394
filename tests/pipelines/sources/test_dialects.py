"""Lists as other programs write them: numpy and pandas, Spark and MySQL, Hugging Face, the makers of Panda-70M."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cinemo.image import ImageError
from cinemo.video import VideoError, probe
from pipelines import sources
from pipelines.sources import catalogs, images, textfiles
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
        ("[np.str_('a cat'), np.str_(\"a dog\")]", "a cat", 2),  # numpy 2
        ("['a cat', 'a dog']", "a cat", 2),
        ("['only']", "only", 1),
        ("['a cat' walks]", "['a cat' walks]", 1),  # no list
        ("[1 2]", "[1 2]", 1),
        ("[{{}}]", "[{{}}]", 1),  # a template
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


PAIRS = "[['0:00:00.000','0:00:01.000'],['0:00:01.000','0:01:02.500']]"


@pytest.mark.parametrize("column", ["timestamp", "Segments"])
@pytest.mark.parametrize(
    ("pairs", "captions", "expected"),
    [
        (PAIRS, "['a cat', 'a dog']", [("t=0,1", "a cat"), ("t=1,62.5", "a dog")]),  # Panda-70M
        ("['0:00:02.000', '0:00:03.000']", "a cat", [("t=2,3", "a cat")]),  # Koala-36M
        ([[0, 1.5], [2, None]], ["a cat", "a dog"], [("t=0,1.5", "a cat"), ("t=2", "a dog")]),  # ActivityNet
        ("[[0.  1.5]\n [1.5 2. ]]", "both", [("t=0,1.5", "both"), ("t=1.5,2", "both")]),  # numpy
        ([[0, 1]], ["a cat", "a feline"], [("t=0,1", "a cat")]),  # captions of one segment to choose from
        ("2024-05-01 10:00", "a cat", [(None, "a cat")]),  # a date
        (1714557600, "a cat", [(None, "a cat")]),
        ([], "a cat", [(None, "a cat")]),
    ],
)
def test_pairs_of_start_and_end_are_segments_with_a_caption_each(
    tmp_path: Path, column: str, pairs: Any, captions: Any, expected: list[tuple[str | None, str]]
) -> None:
    record = {"path": "a.mp4", column: pairs, "caption": captions}
    rows, tally = read(tmp_path / "list.jsonl", json.dumps(record))
    assert [(row.get("segment"), row["caption"]) for row in rows] == expected
    assert [(Path(row["uri"]).name, row["fault"]) for row in rows] == [("a.mp4", None)] * len(expected)
    assert tally.notes == []


def test_pairs_that_are_wrong_are_faults_and_cost_no_others(tmp_path: Path) -> None:
    lines = [
        "path,caption,timestamp",
        "a.mp4,\"['a', 'b', 'c']\",\"[[0, 1], [1, 2]]\"",
        "b.mp4,x,\"[[0,1],[3,2],['soon',9]]\"",
    ]
    rows, _ = read(tmp_path / "list.csv", "\n".join(lines))
    assert [(Path(row["uri"]).name, row["segment"], row["fault"]) for row in rows] == [
        ("list.csv#line-2", None, "list.csv line 2: timestamp has 2 segments, and caption 3 captions; "
         "write one caption for each segment, or one for all"),
        ("b.mp4", "t=0,1", None),
        ("list.csv#line-3-segment-2", None, "list.csv line 3: the segment ends at 2, not after its start at 3"),
        ("list.csv#line-3-segment-3", None, "list.csv line 3: 'soon' is no start or end of a segment; "
         "write seconds or HH:MM:SS.mmm"),
    ]  # fmt: skip


@pytest.mark.parametrize("cell", [[{"id": 1}], ["indoor", "dog"]])
def test_lists_of_something_else_than_times_are_noted(tmp_path: Path, cell: Any) -> None:
    rows, tally = read(tmp_path / "list.jsonl", json.dumps({"path": "a.mp4", "caption": "x", "segments": cell}))
    assert [(row["caption"], row["fault"]) for row in rows] == [("x", None)]
    assert tally.notes == ["the lists in the column segments are no pairs of start and end; whole videos are taken"]


def test_pairs_in_parquet_are_read_and_dates_are_not(tmp_path: Path, listed: Listed) -> None:
    nanoseconds = pa.array([1], pa.timestamp("ns"))  # which cannot be read without pandas
    pairs = pa.array([[["0:00:01", "0:00:02"]]])
    for name, column in (("dates", nanoseconds), ("pairs", pairs)):
        pq.write_table(
            pa.table({"path": ["a.mp4"], "caption": ["x"], "timestamp": column}), tmp_path / f"{name}.parquet"
        )
    assert [row.get("segment") for row in listed(tmp_path / "dates.parquet")] == [None]
    assert [row.get("segment") for row in listed(tmp_path / "pairs.parquet")] == ["t=1,2"]


def test_cells_of_hugging_face_without_bytes_name_files(tmp_path: Path, listed: Listed, video: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.mp4").write_bytes(video.read_bytes())
    paths = ["films/a.mp4", str(video), "films/lost.mp4", "http://10.0.0.7/a.mp4", None]
    cells = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"video": cells, "text": ["x"] * 5}), tmp_path / "list.parquet")
    told = []
    for row in listed(tmp_path / "list.parquet"):
        try:
            with sources.open_video(row["uri"]) as file:
                told.append((probe(file).num_frames, ""))
        except VideoError as error:
            told.append((error.reason, str(error)))
    assert [reason for reason, _ in told] == [12, 12, "missing", "unreadable", "missing"]
    for (_, message), words in zip(
        told[2:], ["lost.mp4", "10.0.0.7 is a private address", "video is empty"], strict=True
    ):
        assert words in message


def test_a_catalog_of_hugging_face_may_name_its_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"of a picture")
    cells = [{"bytes": None, "path": "a.png"}, {"bytes": b"own", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"image": cells, "text": ["x"] * 3}), tmp_path / "list.parquet")
    first, second, third = [entry.image for entry in catalogs.entries(str(tmp_path / "list.parquet"))]
    assert (images.read(first), images.read(second)) == (b"of a picture", b"own")
    with pytest.raises(ImageError, match=r"b\.png") as caught:
        images.read(third)
    assert caught.value.reason == "missing"


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_are_the_same_files(
    tmp_path: Path, listed: Listed, written: Any, stored: Any
) -> None:
    (tmp_path / unicodedata.normalize(stored, "Übung é.mp4")).touch()
    (tmp_path / unicodedata.normalize(written, "Übung é.txt")).write_text("beside")
    folder = listed(tmp_path)
    assert [row["caption"] for row in folder] == ["beside"]
    lines = [unicodedata.normalize(written, f"{name},listed") for name in ("Übung é.mp4", "fehlt ü.mp4")]
    (tmp_path / "list.csv").write_text("\n".join(["path,caption", *lines]))
    rows = listed(tmp_path / "list.csv")
    assert rows[0]["uri"] == folder[0]["uri"]
    assert rows[1]["uri"] == str(tmp_path / unicodedata.normalize(written, "fehlt ü.mp4"))
