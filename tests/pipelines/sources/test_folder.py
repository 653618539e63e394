"""Folders: every video below, in order, with the caption beside it or in captions.csv."""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cinemo.video import write_video
from pipelines import sources
from tests.pipelines.sources.conftest import Listed
from tests.pipelines.sources.test_video_lists import write
from tests.test_videofile import not_root


def captions(rows: list[dict[str, str]]) -> dict[str, str]:
    return {Path(row["uri"]).name: row["caption"] for row in rows}


def test_folder_is_searched_to_its_leaves_and_captions_stand_beside_videos(tmp_path: Path, listed: Listed) -> None:
    for name in ("b.mp4", "a.MOV", "deep/c.webm", "deep.mp4", "notes.pdf", ".hidden.mp4", ".cache/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text(" a boat\n")
    (tmp_path / "b.json").write_text('{"caption": "not this one"}')
    (tmp_path / "deep/c.json").write_text(json.dumps({"text": "a cat"}))
    rows = listed(tmp_path)
    assert [row["uri"] for row in rows] == sorted(row["uri"] for row in rows)
    assert captions(rows) == {"a.MOV": "", "b.mp4": "a boat", "deep.mp4": "", "c.webm": "a cat"}
    assert [row["fault"] for row in rows] == [None] * 4


def test_captions_csv_comes_first_and_what_it_lacks_is_listed_all_the_same(tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "a.txt").write_text("not this one")
    (tmp_path / "b.txt").write_text("a boat")
    (tmp_path / "captions.csv").write_text(
        "videoid,contentUrl,name,page_dir,duration\n1,./a.mp4,a car,,2\n2,gone.mp4,x,,2\n"
    )
    assert captions(listed(tmp_path)) == {"a.mp4": "a car", "gone.mp4": "x", "b.mp4": "a boat"}


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("a.json", b"{", "a.json holds no caption: Expecting"),
        ("a.json", b'["a cat"]', "a.json holds no caption: it is not an object"),
        ("a.json", b'{"caption": 7}', "a.json holds no caption: it is of type int"),
        ("a.json", b'{"caption": "\\ud800"}', "a.json holds no caption: it is not UTF-8"),
        ("a.txt", b"\xff\xfe", "a.txt holds no caption: 'utf-8' codec"),
    ],
)
def test_a_caption_that_cannot_be_read_is_a_fault_of_its_video(
    tmp_path: Path, listed: Listed, name: str, data: bytes, fault: str
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / name).write_bytes(data)
    (row,) = listed(tmp_path)
    assert row["uri"] == str(tmp_path / "a.mp4")
    assert row["caption"] == ""
    assert row["fault"].startswith(fault)


def test_a_video_whose_name_is_not_utf8_is_a_fault_and_the_others_are_listed(tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "a.mp4").touch()
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    good, bad = listed(tmp_path)
    assert good["uri"] == str(tmp_path / "a.mp4")
    assert "not UTF-8; rename it" in bad["fault"]


def test_a_linked_folder_is_searched_and_a_link_to_a_folder_above_is_not(tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.mp4").touch()
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    assert [row["uri"] for row in listed(tmp_path / "in")] == [str(tmp_path / "in/link/a.mp4")]


def test_captions_csv_without_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.csv").write_text("film,words\na.mp4,b\n")
    with pytest.raises(ValueError, match=r"captions.csv has no column for the video; found are film, words"):
        sources.check(str(tmp_path))
    with pytest.raises(ValueError, match="found are film, words"):
        next(sources.iter_videos(str(tmp_path)))


def test_videos_have_many_endings_and_animated_webp_is_told_from_pictures(tmp_path: Path, listed: Listed) -> None:
    names = [
        "a.MTS",
        "b.m2ts",
        "c.3gp",
        "d.wmv",
        "e.flv",
        "f.ogv",
        "g.mpg",
        "h.MPEG",
        "i.m4v",
        "j.ts",
        "k.gif",
        "l.vob",
    ]
    for name in names:
        (tmp_path / name).touch()
    write_video(tmp_path / "moves.webp", np.stack([np.full((16, 16, 3), 9 * k, np.uint8) for k in range(3)]))
    Image.new("RGB", (16, 16)).save(tmp_path / "a.webp")  # a thumbnail
    (tmp_path / "empty.webp").touch()
    assert list(captions(listed(tmp_path))) == [*names, "moves.webp"]


def notes_of(folder: Path) -> tuple[dict[str, str], sources.Tally]:
    """The captions of a folder's videos, and what was counted on the way."""
    tally = sources.Tally()
    found = [row for table in sources.iter_videos(str(folder), tally=tally) for row in table.to_pylist()]
    assert [row["fault"] for row in found] == [None] * len(found)
    return captions(found), tally


def test_a_caption_beside_a_video_has_any_usual_name_case_and_encoding(tmp_path: Path) -> None:
    beside = {
        "a.TXT": b"\xef\xbb\xbfa cat\r\n",
        "b.mp4.txt": "a dog".encode("utf-16"),
        "c.caption": b"\xfe\xff" + "a bird".encode("utf-16-be"),
        "d.json": b'\xef\xbb\xbf{"Prompt": "a fish", "url": "x"}',
        "e.MP4.Json": b'{"caption": null, "text": ["a fox", "a red fox"]}',
        "A.txt": b"a lion",  # of A.mp4, not of a.mp4
    }
    for name, data in beside.items():
        (tmp_path / name).write_bytes(data)
    for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.MP4", "A.mp4", "f.mp4"):
        (tmp_path / name).touch()
    found, tally = notes_of(tmp_path)
    assert found == {
        "A.mp4": "a lion", "a.mp4": "a cat", "b.mp4": "a dog", "c.mp4": "a bird", "d.mp4": "a fish", "e.MP4": "a fox",
        "f.mp4": "",
    }  # fmt: skip
    assert (tally.captioned, tally.uncaptioned, tally.alternatives, tally.unknown) == (6, 1, 1, {})


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("place", ["", "train/"])
def test_hugging_faces_layout_is_read_in_every_folder(tmp_path: Path, name: str, place: str) -> None:
    rows = [{"file_name": "in/a.mp4", "text": "a cat"}, {"file_name": "b.mp4", "text": "a dog"}]
    (tmp_path / place / "in").mkdir(parents=True)
    for row in rows:
        (tmp_path / place / row["file_name"]).touch()
    (tmp_path / "c.mp4").touch()
    write(tmp_path / place / name.lower(), rows).rename(tmp_path / place / name)
    found, tally = notes_of(tmp_path)
    assert found == {"a.mp4": "a cat", "b.mp4": "a dog", "c.mp4": ""}
    assert (tally.repeated, tally.unknown) == (0, {})


def test_metadata_of_something_else_is_said_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "metadata.csv").write_text("key,value\nlicense,CC0\n")
    found, tally = notes_of(tmp_path)
    assert found == {"a.mp4": ""}
    assert tally.notes == ["metadata.csv has no column for a file's name, and is not read"]
    (tmp_path / "metadata.csv").write_text("file_name,text,caption\na.mp4,a cat,a dog\n")
    with pytest.raises(ValueError, match=r"metadata.csv has several columns that may hold the caption: text, caption"):
        sources.check(str(tmp_path))


def test_prompts_and_videos_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / f"videos/{name}.mp4").touch()
    (tmp_path / "videos.txt").write_text("videos/a.mp4\n.\\videos\\b.mp4\nvideos/c.mp4\n\n")
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\r\na bird")
    found, tally = notes_of(tmp_path)
    assert found == {"a.mp4": "a cat", "b.mp4": "", "c.mp4": "a bird"}
    assert (tally.repeated, tally.unknown) == (0, {})
    (tmp_path / "prompts.txt").write_text("a cat\na bird\n")
    with pytest.raises(ValueError, match=r"videos.txt has 3 lines and prompts.txt 2; write one prompt for each video"):
        sources.check(str(tmp_path))


def test_files_of_unknown_kinds_are_counted_by_their_ending(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.xyz", "c.XYZ", "README", "a.txt", "._d.mp4", "e.jpg"):
        (tmp_path / name).touch()
    _, tally = notes_of(tmp_path)
    assert list(tally.lines_of_files()) == [
        "         4  files of unknown kinds left out: .xyz 2, (no ending) 1, .jpg 1"
    ]


def test_thumbnails_and_deleted_files_of_a_system_are_no_videos(tmp_path: Path, listed: Listed) -> None:
    system = ("@eaDir", "in/@EADIR", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__MACOSX")
    for folder in system:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "thumbnail.mp4").touch()
    (tmp_path / "in/recycle").mkdir()
    for name in ("a.mp4", "in/recycle/b.mp4", "lost+found.mp4"):
        (tmp_path / name).touch()
    assert list(captions(listed(tmp_path))) == ["a.mp4", "b.mp4", "lost+found.mp4"]


@pytest.mark.parametrize("kind", ["mp4", "parquet"])
def test_a_subfolder_that_may_not_be_listed_is_left_out_and_noted(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "of others/within").mkdir(parents=True)
        for file in ("a", "of others/b", "of others/within/c", "z"):
            path = folder / f"{file}.{kind}"
            path.touch() if kind == "mp4" else write(path, [{"path": f"{path.stem}.mp4"}])
        folder.chmod(0o755)
        (folder / "of others/within").chmod(0)
        try:
            with not_root():
                sources.check(name)
                found, tally = notes_of(folder)
            assert found == {"a.mp4": "", "b.mp4": "", "z.mp4": ""}
            assert f"{name}/of others/within cannot be listed (permission denied), and is left out" in tally.notes
            folder.chmod(0)
            with not_root(), pytest.raises(ValueError, match="it cannot be read: PermissionError"):
                sources.check(name)
        finally:
            folder.chmod(0o755)
            (folder / "of others/within").chmod(0o755)
