"""Folders and CSV files become rows; what is wrong with them is said in one sentence."""

import json
from pathlib import Path

import pytest

from pipelines import sources


def listed(source: Path) -> dict[str, str]:
    rows = sources.read(str(source)).to_pylist()
    assert [row["uri"] for row in rows] == sorted(row["uri"] for row in rows)
    return {Path(row["uri"]).name: row["caption"] for row in rows}


def test_folder_is_searched_to_its_leaves_and_captions_stand_beside_videos(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "deep/c.webm", "notes.pdf", ".hidden.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text(" a boat\n")
    (tmp_path / "deep/c.json").write_text(json.dumps({"caption": "a cat"}))
    assert listed(tmp_path) == {"a.MOV": "", "b.mp4": "a boat", "c.webm": "a cat"}


def test_captions_csv_of_a_folder_is_used_and_what_it_lacks_has_the_empty_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    columns = "videoid,contentUrl,name,page_dir,duration"
    (tmp_path / "captions.csv").write_text(f"{columns}\n1,a.mp4,a car,,2\n2,gone.mp4,x,,2\n")
    assert listed(tmp_path) == {"a.mp4": "a car", "b.mp4": "", "gone.mp4": "x"}


def test_webvid_csv_has_paths_relative_to_itself_and_takes_a_video_once(tmp_path: Path) -> None:
    text = (
        "videoid,contentUrl,duration,page_dir,name\n"
        '7,https://host/preview/7.mp4,PT00H00M05S,000001_000050,"a dog, running"\n'
        "8,films/8.mp4,PT5S,,a bird\n"
        "8,films/8.mp4,PT5S,,said twice\n"
    )
    (tmp_path / "results.csv").write_text(text)
    rows = sources.read(str(tmp_path / "results.csv")).to_pylist()
    assert rows == [
        {"uri": str(tmp_path / "000001_000050/7.mp4"), "caption": "a dog, running", "fault": None},
        {"uri": str(tmp_path / "films/8.mp4"), "caption": "a bird", "fault": None},
    ]


def test_missing_columns_are_named_with_those_that_were_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,text\nx.mp4,hello\n")
    with pytest.raises(ValueError, match="lacks contentUrl, name; found the columns path, text, needed are"):
        sources.read(str(tmp_path / "a.csv"))


def test_a_caption_that_cannot_be_read_is_a_fault_of_its_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.json").write_text("{")
    row = sources.read(str(tmp_path)).to_pylist()[0]
    assert row["fault"].startswith("a.json holds no caption")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere", "does not exist"),
        ("empty", "lists no video"),
        ("a.pdf", "neither a folder nor"),
        ("s3://b/c", "not on this machine"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").touch()
    with pytest.raises(ValueError, match=sentence):
        sources.read(name if "://" in name else str(tmp_path / name))
