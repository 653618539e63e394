"""CSV, JSON lines and Parquet: the same rows from each, and a fault that names its line for each kind of damage."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import sources
from tests.pipelines.sources.conftest import Listed


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows as any kind of list, by the path's ending."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10_000)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        if name.endswith(".csv"):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


KINDS = ("csv", "csv.gz", "jsonl", "ndjson", "jsonl.gz", "parquet")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [("uri", "caption"), ("url", "text"), ("path", "prompt"), ("file_name", "name")])
def test_every_kind_gives_the_same_rows(tmp_path: Path, listed: Listed, kind: str, names: tuple[str, str]) -> None:
    uris = ["films/b.mp4", "/abs/../a.mp4", "https://host/c.mp4?x=1", "s3://bucket/d.mp4", "films/./b.mp4"]
    captions = ["a dog, running", " a\nbird ", "", "ünï", "said twice"]
    rows = [{names[0]: uri, names[1]: caption, "other": "1"} for uri, caption in zip(uris, captions, strict=True)]
    assert listed(write(tmp_path / f"list.{kind}", rows)) == [
        {"uri": str(tmp_path / "films/b.mp4"), "caption": "a dog, running", "fault": None},
        {"uri": "/a.mp4", "caption": "a\nbird", "fault": None},
        {"uri": "https://host/c.mp4?x=1", "caption": "", "fault": None},
        {"uri": "s3://bucket/d.mp4", "caption": "ünï", "fault": None},
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_webvid_columns_stand_for_downloaded_files_and_named_columns_for_themselves(
    tmp_path: Path, listed: Listed, kind: str
) -> None:
    row = {"videoid": "7", "contentUrl": "https://host/7.mp4", "page_dir": "01_50", "name": "a dog", "caption": "cats"}
    path = write(tmp_path / f"list.{kind}", [row])
    assert listed(path) == [{"uri": str(tmp_path / "01_50/7.mp4"), "caption": "a dog", "fault": None}]
    assert listed(path, uri_column="contentUrl", caption_column="caption") == [
        {"uri": "https://host/7.mp4", "caption": "cats", "fault": None}
    ]
    del row["page_dir"]
    assert listed(write(path, [row]))[0]["uri"] == "https://host/7.mp4"


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_are_missing_are_named_with_those_that_were_found(tmp_path: Path, kind: str) -> None:
    path = str(write(tmp_path / f"list.{kind}", [{"film": "a.mp4", "words": "b"}]))
    with pytest.raises(ValueError, match="no column for the video; found are film, words, needed is one of") as caught:
        sources.check(path)
    assert str(caught.value).startswith(f"--input {path}")
    with pytest.raises(ValueError, match="lacks the column speech that --caption-column names; found are film, words"):
        sources.check(path, uri_column="film", caption_column="speech")
    sources.check(path, uri_column="film")


def faults(rows: list[dict[str, Any]], path: Path) -> list[tuple[str, str, str]]:
    """(uri without its folder, caption, fault) of each row."""
    return [(row["uri"].removeprefix(f"{path.parent}/"), row["caption"], row["fault"]) for row in rows]


def test_each_broken_line_of_csv_is_a_fault(tmp_path: Path, listed: Listed) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(
        b"path,text\na.mp4,good\nb.mp4,one,two\n\nc.mp4,\xff\n,nameless\nd.mp4\n\xff.mp4,x\n"
        + b"e.mp4,"
        + b"x" * 200_000
        + b"\nf\x00.mp4,x\nz.mp4,good\n"
    )
    found = faults(listed(path), path)
    assert [row[0] for row in found if row[2] is None] == ["a.mp4", "z.mp4"]
    expected = [
        ("list.csv#line-3", "list.csv line 3: 3 fields where the header has 2"),
        ("c.mp4", "list.csv line 5 holds no caption: it is not UTF-8"),
        ("list.csv#line-6", "list.csv line 6 names no video"),
        ("list.csv#line-7", "list.csv line 7: 1 fields where"),
        ("\\udcff.mp4", "list.csv line 8: the name of the video is not UTF-8"),
        ("list.csv#line-9", "list.csv line 9: field larger than field limit"),
        ("list.csv#line-10", "list.csv line 10: path holds a zero byte"),
    ]
    bad = [row for row in found if row[2] is not None]
    assert [(uri, caption) for uri, caption, _ in bad] == [(uri, "") for uri, _ in expected]
    for (_, _, fault), (_, start) in zip(bad, expected, strict=True):
        assert fault.startswith(start)


def test_each_broken_line_of_json_is_a_fault(tmp_path: Path, listed: Listed) -> None:
    path = tmp_path / "list.jsonl"
    lines = [
        b'{"uri": "a.mp4", "caption": null}',
        b'{"uri": "b.mp4"',
        b"",
        b'["c.mp4"]',
        b'{"uri": 7}',
        b'{"caption": "nameless"}',
        b'{"uri": "d.mp4", "caption": {"x": 1}}',
        b'{"uri": "e.mp4", "caption": "\xff"}',
        b'{"uri": "f.mp4", "caption": "\\ud800"}',
        b"[" * 100_000,
        b'{"uri": "z.mp4", "caption": "good"}',
    ]
    path.write_bytes(b"\n".join(lines))
    found = faults(listed(path), path)
    assert found[0] == ("a.mp4", "", None)
    assert found[-1] == ("z.mp4", "good", None)
    expected = [
        ("list.jsonl#line-2", "list.jsonl line 2: not JSON (Expecting"),
        ("list.jsonl#line-4", "list.jsonl line 4: a JSON list, not an object"),
        ("list.jsonl#line-5", "list.jsonl line 5: uri is of type int, not text"),
        ("list.jsonl#line-6", "list.jsonl line 6 names no video"),
        ("d.mp4", "list.jsonl line 7 holds no caption: it is of type dict, not text"),
        ("list.jsonl#line-8", "list.jsonl line 8: not JSON ('utf-8' codec"),
        ("f.mp4", "list.jsonl line 9 holds no caption: it is not UTF-8"),
        ("list.jsonl#line-10", "list.jsonl line 10: not JSON (maximum recursion"),
    ]
    assert [row[0] for row in found[1:-1]] == [uri for uri, _ in expected]
    for (_, _, fault), (_, start) in zip(found[1:-1], expected, strict=True):
        assert fault.startswith(start)


def test_broken_rows_of_parquet_are_faults(tmp_path: Path, listed: Listed) -> None:
    path = tmp_path / "list.parquet"
    captions = pa.array([b"good", b"\xff", None, b"x"]).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4", "c.mp4", None], "caption": captions}), path)
    assert faults(listed(path), path) == [
        ("a.mp4", "good", None),
        ("b.mp4", "", "list.parquet row 2 holds no caption: it is not UTF-8"),
        ("c.mp4", "", None),
        ("list.parquet#row-4", "", "list.parquet row 4 names no video: uri is empty or missing"),
    ]


@pytest.mark.parametrize("kind", ["csv.gz", "jsonl.gz", "parquet"])
def test_what_follows_damage_in_the_middle_is_one_fault(tmp_path: Path, listed: Listed, kind: str) -> None:
    path = tmp_path / f"list.{kind}"
    rows = [{"uri": f"{i * 7919 % 100_003:x}.mp4", "caption": f"{i * 104_729:x}"} for i in range(60_000)]
    write(path, rows)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if kind == "parquet":
        data[middle : middle + 4000] = b"\xff" * 4000
    path.write_bytes(data if kind == "parquet" else data[:middle])
    *good, last = listed(path)
    assert 0 < len(good) < 60_000
    assert [row["fault"] for row in good] == [None] * len(good)
    assert last["uri"].startswith(f"{path}#after-")
    assert "is damaged after" in last["fault"]


def test_a_list_that_is_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    for name in ("a.parquet", "a.csv.gz", "a.jsonl"):
        (tmp_path / name).write_bytes(b"plain text\n")
        with pytest.raises(ValueError, match=f"--input .*{name}: {name} (cannot be read|has no column)"):
            sources.check(str(tmp_path / name))


def test_a_folder_and_a_pattern_of_lists_are_read_in_order_and_a_bad_one_is_a_fault(
    tmp_path: Path, listed: Listed
) -> None:
    folder = tmp_path / "table.parquet"
    folder.mkdir()
    for i in (0, 2):
        write(folder / f"{i}.parquet", [{"uri": f"{i}.mp4", "caption": f"c{i}"}])
    (folder / "1.parquet").write_bytes(b"no table")
    from_folder, from_pattern = listed(folder), listed(folder / "{0..3}.parquet")
    assert [Path(row["uri"]).name for row in from_folder] == ["0.mp4", "1.parquet", "2.mp4"]
    assert from_folder[1]["fault"].startswith("it cannot be read: 1.parquet cannot be read: ")
    assert from_pattern[:3] == from_folder
    assert from_pattern[3]["uri"] == str(folder / "3.parquet")
    assert "No such file" in from_pattern[3]["fault"]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Video Path,CAPTION", True),
        ("filename,Description", True),
        ("videoUrl,cap", True),
        ("image_id,clip,long_caption", True),
        ("URL,title", True),
        ("video_path,url,text,name", True),  # explicit names outdo general ones
        ("path,words", False),
    ],
)
def test_columns_are_known_by_their_usual_names_in_any_spelling(
    tmp_path: Path, listed: Listed, header: str, found: bool
) -> None:
    names = header.split(",")
    video = next(i for i, name in enumerate(names) if name in "Video Path filename videoUrl clip URL video_path path")
    text = next((i for i, name in enumerate(names) if name in "CAPTION Description cap long_caption title text"), None)
    cells = ["a.mp4" if i == video else "a cat" if i == text else f"v{i}" for i in range(len(names))]
    (tmp_path / "list.csv").write_text(f"{header}\n{','.join(cells)}\n")
    tally = sources.Tally()
    ((row,),) = [table.to_pylist() for table in sources.iter_videos(str(tmp_path / "list.csv"), tally=tally)]
    assert (Path(row["uri"]).name, row["caption"]) == ("a.mp4", "a cat" if found else "")
    said = "list.csv has no column for the caption; found are path, words; name it with --caption-column"
    assert tally.notes == ([] if found else [said])


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (
            "path,caption,text",
            "several columns that may hold the caption: caption, text; name the right one",
        ),
        ("path,Caption,caption", "several columns that may hold the caption: Caption, caption"),
        (
            "path,url,caption",
            "several columns that may hold the video: path, url; name the right one with --uri",
        ),
        ("path,caption,start,begin,end", "several columns that may hold the start of a segment: start, begin; rename"),
    ],
)
def test_a_table_that_may_be_read_in_two_ways_is_refused(tmp_path: Path, header: str, sentence: str) -> None:
    (tmp_path / "list.csv").write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    with pytest.raises(ValueError, match=f"list.csv has {sentence}"):
        sources.check(str(tmp_path / "list.csv"))


def test_a_flag_chooses_among_columns_in_any_case(tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "list.csv").write_text("path,url,Caption,text\na.mp4,b.mp4,c,d\n")
    (row,) = listed(tmp_path / "list.csv", uri_column="Path", caption_column="caption")
    assert (Path(row["uri"]).name, row["caption"]) == ("a.mp4", "c")


def test_of_several_captions_the_first_is_taken_and_counted(tmp_path: Path) -> None:
    records = [{"path": "a.mp4", "cap": ["", "one", "two"]}, {"path": "b.mp4", "cap": ["only"]}]
    records += [{"path": "c.mp4", "cap": []}, {"path": "d.mp4", "cap": "['it''s', 'two']"}]
    records += [{"path": "e.mp4", "cap": "[music]"}]
    (tmp_path / "list.json").write_text(json.dumps(records))
    tally = sources.Tally()
    (table,) = sources.iter_videos(str(tmp_path / "list.json"), tally=tally)
    assert table["caption"].to_pylist() == ["one", "only", "", "its", "[music]"]
    assert (tally.alternatives, tally.captioned, tally.uncaptioned) == (2, 4, 1)


SEGMENTS = [
    ("start,end", "0,1", "t=0,1"),
    ("Start Time,End Time", "0.5,", "t=0.5"),
    ("start,end", ",", None),
    ("start_timestamp,end_timestamp", "00:00:01.500,1:00:02", "t=1.5,3602"),
    ("start_sec,end_sec", "5 s,01:10", "t=5,70"),
    ("start_frame,end_frame", "30,60", "frames=30,60"),
    ("start_ms,end_ms", "250,1000", "t=0.25,1"),
    ("begin,stop", '"0,5","1,5"', "t=0.5,1.5"),
    ("start,duration", "2,0:03", "t=2,5"),
    ("duration,fps", "2,30", None),
]


@pytest.mark.parametrize(("names", "cells", "segment"), SEGMENTS)
def test_start_and_end_make_a_segment(tmp_path: Path, names: str, cells: str, segment: str | None) -> None:
    (tmp_path / "list.csv").write_text(f"path,caption,{names}\na.mp4,x,{cells}\n")
    (table,) = sources.iter_videos(str(tmp_path / "list.csv"))
    assert table.to_pylist()[0].get("segment") == segment


def test_rows_of_one_video_are_its_segments_and_only_the_same_one_again_is_left_out(tmp_path: Path) -> None:
    lines = ["a.mp4,one,0,1", "a.mp4,two,1,2", "a.mp4,again,0.0,00:01", "a.mp4,x,2,1", "a.mp4,x,soon,3", "b.mp4,all,,"]
    (tmp_path / "list.csv").write_text("\n".join(["path,caption,start,end", *lines]))
    tally = sources.Tally()
    (table,) = sources.iter_videos(str(tmp_path / "list.csv"), tally=tally)
    good = [row for row in table.to_pylist() if row["fault"] is None]
    assert [(Path(row["uri"]).name, row["caption"], row["segment"]) for row in good] == [
        ("a.mp4", "one", "t=0,1"),
        ("a.mp4", "two", "t=1,2"),
        ("b.mp4", "all", None),
    ]
    assert [row["fault"] for row in table.to_pylist() if row["fault"]] == [
        "list.csv line 5: the segment ends at 1, not after its start at 2",
        "list.csv line 6: 'soon' is no start or end of a segment; write seconds or HH:MM:SS.mmm",
    ]
    assert (tally.repeated, tally.faults, tally.segments) == (1, 2, 2)


def test_a_start_without_an_end_is_said(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,start\na.mp4,1\n")
    tally = sources.Tally()
    (table,) = sources.iter_videos(str(tmp_path / "list.csv"), tally=tally)
    assert table.schema == sources.VIDEO
    assert "the column start and none for the end of a segment; whole videos are taken" in tally.notes[0]


def test_names_of_files_are_taken_as_other_programs_write_them(tmp_path: Path, listed: Listed) -> None:
    names = ["my clip.mp4", "take: 1.mp4", "a::b.mp4", "100%.mp4", "x%20y.mp4", "back\\slash.mp4", "#1 ä.mp4"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.mp4").touch()
    cells = [(tmp_path / name).as_uri() for name in names] + names
    cells += [
        f"file://localhost{tmp_path}/my%20clip.mp4",
        f"file:{tmp_path}/take: 1.mp4",
        f"file://{tmp_path}/100%.mp4",
    ]
    cells += [".\\deep\\a.mp4", "deep\\..\\deep\\a.mp4", "./deep/a.mp4"]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"path": cell}) for cell in cells))
    rows = listed(tmp_path / "list.jsonl")
    assert [row["uri"] for row in rows] == [str(tmp_path / name) for name in [*names, "deep/a.mp4"]]
    for row in rows:
        with sources.open_video(row["uri"]) as path:
            assert path == row["uri"]


@pytest.mark.parametrize("name", ["C:\\Users\\me\\a.mp4", "\\\\server\\share\\a.mp4"])
def test_an_absolute_path_of_windows_is_a_fault_that_says_so(tmp_path: Path, listed: Listed, name: str) -> None:
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": name}))
    (row,) = listed(tmp_path / "list.jsonl")
    assert row["fault"].startswith(f"list.jsonl line 1: path is {name}, a path of a Windows machine; write it relative")
