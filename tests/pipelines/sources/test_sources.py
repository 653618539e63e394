"""Sources as jobs use them: streamed in chunks, each video once, from anywhere, refused in one sentence."""

import itertools
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.json
import pyarrow.parquet
import pytest

from pipelines import sources
from pipelines.core.hashing import Seen
from tests.pipelines.sources.conftest import Listed
from tests.pipelines.sources.test_webdataset import write_shard


def test_chunks_are_full_and_a_video_of_an_earlier_chunk_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CHUNK", 4)
    uris = ["a", "b", "a", "c", "d", "b", "e", f"file://{tmp_path}/a", "e", "d", "./c", "b", "f"]
    (tmp_path / "list.csv").write_text("uri,caption\n" + "".join(f"{uri},{i}\n" for i, uri in enumerate(uris)))
    tables = list(sources.iter_videos(str(tmp_path / "list.csv")))
    assert [table.schema for table in tables] == [sources.VIDEO] * 3
    assert [[Path(uri).name for uri in table["uri"].to_pylist()] for table in tables] == [
        ["a", "b", "c"],
        ["d", "e"],
        ["f"],
    ]
    assert [table["caption"].to_pylist() for table in tables] == [["0", "1", "3"], ["4", "6"], ["12"]]


def test_seen_agrees_with_a_set() -> None:
    seen, known, random = Seen(), set(), np.random.default_rng(0)
    for _ in range(50):
        uris = [str(i) for i in random.integers(0, 3000, random.integers(1, 300))]
        expected = [not (uri in known or known.add(uri)) for uri in uris]  # type: ignore[func-returns-value]
        assert seen.add(uris).tolist() == expected
    assert sum(len(run) for run in seen._runs) == len(known)
    assert all(len(long) >= 2 * len(short) for long, short in itertools.pairwise(seen._runs))


def test_the_first_rows_come_before_the_rest_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK", 2)
    write_shard(tmp_path / "0.tar", {f"{i}.mp4": b"" for i in range(4)})
    tables = sources.iter_videos(str(tmp_path / "{0..999999999999}.tar"))
    assert sum(table.num_rows for table in itertools.islice(tables, 3)) == 6


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    path, count = tmp_path / "list.csv", 200_000
    with path.open("w") as file:
        file.write("videoid,contentUrl,duration,page_dir,name\n")
        for i in range(count):
            file.write(f"{i},https://host/{i:032x}.mp4,PT5S,{i // 1000:06}_000050,a caption of some words {i:032x}\n")
    tracemalloc.start()
    rows, early = 0, 0
    for table in sources.iter_videos(str(path)):
        rows += table.num_rows
        if rows == 2 * sources.CHUNK:
            early = tracemalloc.get_traced_memory()[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{rows} rows; peak {peak / 1e6:.1f} MB, after two chunks {early / 1e6:.1f}")
    assert rows == count
    assert peak < 48e6  # of which 31 MB are buffers; all rows as Python objects would add 66 MB
    assert peak < early + 24 * count  # what is kept is 8 bytes a video, and twice that while runs are merged


@pytest.mark.parametrize("kind", ["folder", "captions.csv", "list.jsonl", "list.parquet", "shard", "simplecache"])
def test_a_source_on_s3_lists_what_lies_there(tmp_path: Path, bucket: Any, listed: Listed, kind: str) -> None:
    for name in ("in/a.mp4", "in/deep/b.mp4"):
        bucket.pipe(f"videos/{name}", b"")
    bucket.pipe("videos/in/a.txt", b"a boat")
    bucket.pipe("videos/list.jsonl", b'{"uri": "in/a.mp4", "caption": "a boat"}\n{"uri": "./in/x/../deep/b.mp4"}\n')
    source = {"folder": "s3://videos/in/", "captions.csv": "s3://videos/in"}.get(kind, f"s3://videos/{kind}")
    uris = ["s3://videos/in/a.mp4", "s3://videos/in/deep/b.mp4"]
    if kind == "captions.csv":
        bucket.pipe("videos/in/captions.csv", b"contentUrl,name\na.mp4,a boat\n")
    elif kind == "list.parquet":
        (tmp_path / "a.jsonl").write_bytes(bucket.cat("videos/list.jsonl"))
        pyarrow.parquet.write_table(pyarrow.json.read_json(tmp_path / "a.jsonl"), tmp_path / "a.parquet")
        bucket.put(str(tmp_path / "a.parquet"), "videos/list.parquet")
    elif kind == "shard":
        bucket.put(
            str(write_shard(tmp_path / "s.tar", {"a.mp4": b"x", "a.txt": b"a boat", "b.mp4": b"y"})), "videos/s/0.tar"
        )
        source, uris = "s3://videos/s", ["s3://videos/s/0.tar#a.mp4@512+1", "s3://videos/s/0.tar#b.mp4@2560+1"]
    elif kind == "simplecache":
        source = "simplecache::s3://videos/list.jsonl"
        uris = [f"simplecache::{uri}" for uri in uris]
    rows = listed(source)
    assert [(row["uri"], row["caption"], row["fault"]) for row in rows] == [
        (uris[0], "a boat", None),
        (uris[1], "", None),
    ]
    for row, data in zip(rows, (b"x", b"y") if kind == "shard" else (b"", b""), strict=True):
        with sources.open_video(row["uri"]) as file:
            assert not isinstance(file, str)
            assert file.read() == data


def test_a_folder_and_a_list_in_a_zip_file_are_sources(tmp_path: Path, listed: Listed, video: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(video, "in/a.mp4")
        archive.writestr("in/a.txt", "a boat")
        archive.writestr("list.csv", "uri,caption\nin/a.mp4,a boat\n")
    for source in ("zip://::file://", "zip://in::file://", "zip://list.csv::file://"):
        assert listed(f"{source}{tmp_path}/x.zip") == [
            {"uri": f"zip://in/a.mp4::{tmp_path}/x.zip", "caption": "a boat", "fault": None}
        ]


def test_a_list_on_a_web_server_names_videos_beside_it(tmp_path: Path, listed: Listed, web: tuple[str, Any]) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/list.csv").write_text("uri\na.mp4\nhttps://else.where/b.mp4\n")
    rows = listed(f"{web[0]}/d/list.csv?signature=a/b")
    assert [row["uri"] for row in rows] == [f"{web[0]}/d/a.mp4", "https://else.where/b.mp4"]


def test_what_a_source_held_is_counted_and_a_tenth_without_a_caption_is_warned_of(tmp_path: Path) -> None:
    lines = [f"{i}.mp4,{'a cat' if i else ''}" for i in range(10)]
    path = tmp_path / "list.csv"
    path.write_text("\n".join(["path,caption", *lines, "1.mp4,again", "./2.mp4,again", ",nameless"]))
    tally = sources.Tally()
    list(sources.iter_videos(str(path), tally=tally))
    assert [line.split(maxsplit=1) for line in tally.lines()] == [
        ["9", "videos with a caption"],
        ["1", "videos without a caption"],
        ["1", "rows with a fault, which are rejects"],
        ["2", "rows left out: they repeat a video that an earlier row names"],
    ]
    assert list(tally.warnings()) == []
    assert tally.counts()["rows_that_repeat_a_video"] == 2
    path.write_text("\n".join(["path,caption", *lines[:9]]))
    tally = sources.Tally()
    list(sources.iter_videos(str(path), tally=tally))
    assert list(tally.warnings()) == ["warning: 1 of 9 videos have no caption, and get the empty prompt"]


def refusal(source: str) -> str:
    with pytest.raises(ValueError, match=r"^--input ") as caught:
        sources.check(source)
    assert str(caught.value).startswith(f"--input {source}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere", "nowhere does not exist"),
        ("nowhere.csv", "nowhere.csv does not exist"),
        ("{3..5}.tar", "3.tar does not exist"),
        ("empty", "lists no video"),
        ("empty.csv", "no column for the video; found are (none)"),
        ("empty.jsonl", "no column for the video; found are (none)"),
        ("a.pdf", "neither a folder nor a file of a known kind; give a folder of videos"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("a.pdf", "empty.csv", "empty.jsonl"):
        (tmp_path / file).touch()
    assert sentence in refusal(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"^--input "):
        list(sources.iter_videos(str(tmp_path / name)))


def test_a_list_without_rows_is_refused_before_the_job_and_empty_in_it(tmp_path: Path) -> None:
    (tmp_path / "header.csv").write_text("uri,caption\n")
    assert "lists no video" in refusal(str(tmp_path / "header.csv"))
    assert list(sources.iter_videos(str(tmp_path / "header.csv"))) == []


def test_a_remote_source_that_is_none_is_refused(bucket: Any) -> None:
    assert "does not exist" in refusal("s3://videos/none")
    assert "does not exist" in refusal("s3://nobody/list.csv")
    assert "cannot be read: ClientConnectorError" in refusal("http://127.0.0.1:9/list.csv")


def test_who_is_not_let_in_is_told_so(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    type(bucket).clear_instance_cache()
    with pytest.raises(ValueError, match=r"^--input s3://videos/list.csv: it cannot be read: .*[Cc]redential"):
        sources.check("s3://videos/list.csv")
