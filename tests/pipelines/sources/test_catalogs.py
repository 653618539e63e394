"""Catalogs: every kind gives the same entries, broken rows are faults, what is none is refused with a sentence."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.sources import catalogs, cells, images
from pipelines.sources.rows import Tally

ROWS = [
    {"image": "a.png", "prompt": "it moves", "seed": 3, "steps": None, "guidance": 2.5, "size": "64x64"},
    {"image": "b.png", "prompt": None, "seed": None, "steps": 7, "guidance": None, "size": None},
]
ROW_SETTINGS = [
    {"prompt": "it moves", "seed": 3, "guidance_scale": 2.5, "size": "64x64"},
    {"num_inference_steps": 7},
]


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, kind: str) -> Path:
    """ROWS as a catalog of a kind, with the images a.png and b.png beside it."""
    for shade, name in enumerate("ab"):
        (folder / f"{name}.png").write_bytes(png(shade))
    path = folder / f"catalog.{kind}"
    if kind.startswith("csv"):
        cells = [[("" if value is None else str(value)) for value in row.values()] for row in ROWS]
        text = "\n".join(",".join(line) for line in [list(ROWS[0]), *cells])
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "jsonl", "parquet"])
def test_every_kind_of_table_gives_the_same_entries(tmp_path: Path, kind: str) -> None:
    found = list(catalogs.entries(str(write(tmp_path, kind))))
    assert [entry.image for entry in found] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert [entry.fault for entry in found] == [None, None]
    settings = [{name: str(value) for name, value in entry.settings.items()} for entry in found]
    assert settings == [{name: str(value) for name, value in row.items()} for row in ROW_SETTINGS]


def test_a_folder_gives_its_images_by_name_with_the_prompts_beside_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("c.JPG", "a.png", "in/b.webp"):
        (tmp_path / name).write_bytes(png(0))
    (tmp_path / "a.txt").write_text(" zoom in \n")
    (tmp_path / "notes.md").write_text("no image")
    found = list(catalogs.entries(str(tmp_path)))
    assert [(Path(entry.image).name, entry.settings) for entry in found] == [
        ("a.png", {"prompt": "zoom in"}),
        ("c.JPG", {}),
        ("b.webp", {}),
    ]


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_images_in_cells_of_parquet_are_read_in_any_order(tmp_path: Path, kind: str) -> None:
    cells: list[Any] = [png(shade) for shade in range(50)]
    cells = cells if kind == "bytes" else [{"bytes": cell, "path": "of no use"} for cell in cells]
    pq.write_table(pa.table({"photo": cells, "text": ["x"] * 50}), tmp_path / "cells.parquet", row_group_size=20)
    found = list(catalogs.entries(str(tmp_path)))  # a folder of Parquet files
    assert [entry.settings for entry in found] == [{"prompt": "x"}] * 50
    for place in (0, 1, 49, 20, 19, 3, 40):
        assert images.read(found[place].image) == png(place)


def test_what_stands_for_nothing_is_left_out(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.png"] * 2, "prompt": ["x", "  "], "seed": [float("nan"), 4.0]})
    pq.write_table(table, tmp_path / "c.parquet")
    found = catalogs.entries(str(tmp_path / "c.parquet"))
    assert [entry.settings for entry in found] == [{"prompt": "x"}, {"seed": 4.0}]


def test_broken_rows_are_faults_and_the_others_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = ['{"image": "a.png", "prompt": "x"}', "{broken", '{"prompt": "x"}', '{"image": 7}', '{"image": "a\\u0000"}']
    path.write_text("\n".join(lines))
    found = list(catalogs.entries(str(path)))
    assert found[0].fault is None
    assert [entry.fault is not None for entry in found[1:]] == [True] * 4
    sentences = " ".join(str(entry.fault) for entry in found[1:])
    for expected in ("c.jsonl line 2: not JSON", "line 3 names no image", "of type int, not text", "no name of a file"):
        assert expected in sentences


@pytest.mark.parametrize(
    ("name", "prompt", "sentence"),
    [
        ("nowhere", None, "does not exist; give a folder of images, or a table"),
        ("empty", "x", "it lists no image"),
        ("notes.md", "x", "neither a folder nor a file of a known kind"),
        ("words.csv", "x", "words.csv has no column for the image; found are words"),
        ("none.csv", "x", "it lists no image"),
        ("bare.csv", None, "it has no prompts; give --prompt TEXT"),
        ("fake.parquet", None, "fake.parquet cannot be read"),
    ],
)
def test_what_is_no_catalog_is_refused(tmp_path: Path, name: str, prompt: str | None, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "words.csv").write_text("words\nx\n")
    (tmp_path / "none.csv").write_text("image,prompt\n")
    (tmp_path / "bare.csv").write_text("image\na.png\n")
    (tmp_path / "fake.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=sentence) as caught:
        catalogs.check(str(tmp_path / name), None, None, prompt)
    assert str(caught.value).startswith(f"--catalog {tmp_path / name}: ")
    assert str(caught.value).count("--catalog") == 1


def test_named_columns_are_taken_and_missing_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("photo_path,words\na.png,x\n")
    path = str(tmp_path / "c.csv")
    assert next(catalogs.entries(path, "photo_path", "words")).settings == {"prompt": "x"}
    with pytest.raises(ValueError, match="lacks the column nothing that --prompt-column names"):
        catalogs.check(path, "photo_path", "nothing", None)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_source_video_is_named_as_the_image_is(tmp_path: Path, kind: str) -> None:
    lines = [{"image": "a.png", "video": " in/v.mp4 "}, {"image": "a.png", "video": "s3://b/v.mp4"}]
    lines += [{"image": "a.png", "video": "/v.mp4"}, {"image": "a.png", "video": ""}]
    path = tmp_path / f"c.{kind}"
    if kind == "csv":
        path.write_text("\n".join(["image,video", *(",".join(line.values()) for line in lines)]))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, lines)))
    else:
        pq.write_table(pa.Table.from_pylist(lines), path)
    expected = [{"video": str(tmp_path / "in" / "v.mp4")}, {"video": "s3://b/v.mp4"}, {"video": "/v.mp4"}, {}]
    assert [entry.settings for entry in catalogs.entries(str(path))] == expected
    renamed = path.read_bytes().replace(b"video", b"other") if kind != "parquet" else None
    if renamed:
        path.write_bytes(renamed)
        assert [entry.settings for entry in catalogs.entries(str(path))] == [{}] * 4
        assert [entry.settings for entry in catalogs.entries(str(path), video_column="other")] == expected
        with pytest.raises(ValueError, match="lacks the column nothing that --video-column names"):
            catalogs.check(str(path), None, None, "x", "nothing")


def test_what_names_no_source_video_is_a_fault_and_a_column_of_videos_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"image": "a.png", "video": 7}\n{"image": "a.png", "video": "v\\u0000"}')
    assert [entry.fault for entry in catalogs.entries(str(path))] == [
        "c.jsonl line 1: video is of type int, not text",
        "c.jsonl line 2: video is no name of a file",
    ]
    pq.write_table(pa.table({"image": ["a.png"], "video": [b"mp4"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="holds videos themselves in the column video; only paths and URIs"):
        catalogs.check(str(tmp_path / "c.parquet"), None, None, "x")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(0))
    with pytest.raises(ValueError, match="it is a folder of images, and has no columns"):
        catalogs.check(str(tmp_path / "images"), None, None, "x", "video")


def test_a_stamp_changes_with_the_file_and_is_empty_without_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(0))
    os.utime(path, ns=(1, 1))
    before = images.stamp(str(path))
    assert before
    os.utime(path, ns=(2, 2))
    assert images.stamp(str(path)) != before
    assert images.stamps([str(path), str(tmp_path / "gone.png")]) == [images.stamp(str(path)), ""]
    assert images.stamp(f"{path}#member.mp4@512+100") == images.stamp(str(path))


def test_catalog_and_images_on_s3(bucket: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    for name in ("catalog.csv", "a.png", "b.png"):
        bucket.pipe(f"videos/{name}", (tmp_path / name).read_bytes())
    catalogs.check("s3://videos/catalog.csv", None, None, None)
    found = list(catalogs.entries("s3://videos/catalog.csv"))
    assert [entry.image for entry in found] == ["s3://videos/a.png", "s3://videos/b.png"]
    before = images.stamps([entry.image for entry in found])
    assert all(before)
    assert images.read(found[1].image) == png(1)
    bucket.pipe("videos/b.png", png(9))
    type(bucket).clear_instance_cache()
    after = images.stamps([entry.image for entry in found])
    assert (after[0], after[1] != before[1]) == (before[0], True)
    assert path.exists()


def test_who_is_not_let_in_is_told_so_before_the_job(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type(bucket).clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / "c.csv").write_text("image,prompt\ns3://videos/a.png,x\n")
    for catalog in ("s3://videos/c.csv", str(tmp_path / "c.csv")):
        with pytest.raises(ValueError, match="it cannot be read: NoCredentialsError"):
            catalogs.check(catalog, None, None, None)


def test_an_image_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    from cinemo.image import ImageError

    (tmp_path / "folder.png").mkdir()
    pq.write_table(pa.table({"image": pa.array([b"", None], pa.binary())}), tmp_path / "c.parquet")
    empty = [cells.uri_of(str(tmp_path / "c.parquet"), "image", row) for row in range(2)]
    names = [str(tmp_path / "gone.png"), str(tmp_path / "folder.png"), *empty]
    reasons = []
    for name in names:
        with pytest.raises(ImageError) as caught:
            images.read(name)
        reasons.append(caught.value.reason)
    assert reasons == ["missing", "unreadable", "missing", "missing"]


@pytest.mark.parametrize("place", ["", "train"])
def test_hugging_faces_folder_of_images_has_the_columns_of_its_list(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "c.png", "d.xyz"):
        (folder / name).write_bytes(png(0))
    (folder / "c.TXT").write_text("it turns")
    (folder / "metadata.csv").write_text("file_name;Text;Seed\nb.png;it moves;3\n")
    tally = Tally()
    found = list(catalogs.entries(str(tmp_path), tally=tally))
    assert [(Path(entry.image).name, entry.settings, entry.fault) for entry in found] == [
        ("b.png", {"prompt": "it moves", "seed": "3"}, None),
        ("a.png", {}, None),
        ("c.png", {"prompt": "it turns"}, None),
    ]
    assert list(tally.lines_of_files()) == ["         1  file of an unknown kind left out: .xyz 1"]


def test_a_catalog_is_read_as_other_programs_write_it(tmp_path: Path) -> None:
    (tmp_path / "my photo: 1.png").write_bytes(png(0))
    text = "Image Path\tPROMPT\tMotion Bucket\tVideo\n"
    names = [(tmp_path / "my photo: 1.png").as_uri(), ".\\my photo: 1.png", "C:\\a.png"]
    path = tmp_path / "c.csv"
    path.write_bytes((text + "".join(f"{name}\tx\t7\t.\\v.mp4\n" for name in names)).encode("utf-16"))
    first, second, third = catalogs.entries(str(path))
    settings = {"prompt": "x", "motion_bucket": "7", "video": str(tmp_path / "v.mp4")}
    assert first == second == catalogs.Entry(str(tmp_path / "my photo: 1.png"), settings)
    assert "a path of a Windows machine" in str(third.fault)
    path.write_text("image,caption,text\na.png,b,c\n")
    with pytest.raises(ValueError, match="several columns that may hold the prompt: caption, text; name the right one"):
        catalogs.check(str(path), None, None, None)


def test_columns_that_begin_late_are_read_and_a_second_one_of_a_meaning_is_a_fault(tmp_path: Path) -> None:
    late: list[dict[str, Any]] = [
        {"image": "a.png", "seed": 3, "Motion Bucket": 7, "lora": "ink", "short_caption": "it moves"},
        {"image": "a.png", "video": "v.mp4", "prompt": "up", "caption": "not this"},
        {"image": "a.png", "photo": "b.png"},
        {"image": "a.png", "photo": None, "steps": 5},
        {"image": "a.png"},
    ]
    records = [{"image": "a.png"}] * 150 + late
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = list(catalogs.entries(str(tmp_path / "c.jsonl")))[150:]
    assert [entry.settings for entry in found] == [
        {"prompt": "it moves", "motion_bucket": 7, "seed": 3, "lora": "ink"},
        {"prompt": "up", "video": str(tmp_path / "v.mp4")},
        {},
        {"num_inference_steps": 5},
        {},
    ]
    assert [entry.fault for entry in found] == [
        None,
        None,
        "c.jsonl line 153: with its photo, c.jsonl has several columns that may hold the image: image, photo; name the "
        "right one with --image-column",
        None,
        None,
    ]
