"""Tar shards: samples, captions, damage; and videos that are read where they lie."""

import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinemo.video import probe
from pipelines import sources
from pipelines.sources import webdataset
from tests.pipelines.sources.conftest import Listed


def write_shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_samples_have_the_captions_of_their_key_wherever_they_stand(tmp_path: Path, listed: Listed) -> None:
    members = {
        "0.json": b'{"caption": "not this one"}',
        "0.mp4": b"0" * 700,
        "0.txt": b" a boat\n",
        "sub/1.webm": b"1" * 600,
        "__key__": b"",
        "2.MOV": b"",
        "3.mp4": b"x",
        "3.json": b"{",
        "._3.mp4": b"",
        "sub/1.json": b'{"caption": "a cat"}',
    }
    rows = listed(write_shard(tmp_path / "s.tar", members))
    assert [row["uri"].rpartition("@")[0].removeprefix(f"{tmp_path}/") for row in rows] == [
        f"s.tar#{name}" for name in ("0.mp4", "sub/1.webm", "2.MOV", "3.mp4")
    ]
    assert [row["caption"] for row in rows] == ["a boat", "a cat", "", ""]
    assert [row["fault"] for row in rows[:3]] == [None] * 3
    assert rows[3]["fault"].startswith("s.tar 3.json holds no caption: Expecting")
    for row, data in zip(rows, (members["0.mp4"], members["sub/1.webm"], b"", b"x"), strict=True):
        with sources.open_video(row["uri"]) as file:
            assert not isinstance(file, str)
            assert file.read() == data


def test_a_video_in_a_shard_plays_where_it_lies(tmp_path: Path, listed: Listed, video: Path) -> None:
    data = video.read_bytes()
    shard = write_shard(tmp_path / "a #1@2.tar", {"x/ä#b@3+4.mp4": data, "y.mp4": data})
    first, second = listed(shard)
    for row in (first, second):
        with sources.open_video(row["uri"]) as file:
            assert not isinstance(file, str)
            assert file.name == row["uri"]
            assert probe(file).num_frames == 12
            assert (file.seek(-5, 2), file.read(9)) == (len(data) - 5, data[-5:])
            file.seek(len(data) + 10)
            assert file.read() == b""


def test_a_folder_and_a_pattern_give_the_same_shards_and_a_bad_one_is_a_fault(tmp_path: Path, listed: Listed) -> None:
    for i in range(3):
        write_shard(tmp_path / f"{i:03}.tar", {f"{i}.mp4": b"x", f"{i}.txt": b"caption %d" % i})
        (tmp_path / f"{i:03}.parquet").touch()  # tools write tables about shards beside them
    (tmp_path / "001.tar").write_bytes(b"no tar" * 200)
    rows = listed(tmp_path)
    assert [row["caption"] for row in rows] == ["caption 0", "", "caption 2"]
    assert rows[1]["uri"] == str(tmp_path / "001.tar")
    assert "001.tar is no tar file" in rows[1]["fault"]
    assert listed(tmp_path / "{000..002}.tar") == rows
    assert [row["uri"] for row in listed(tmp_path / "{000..003}.tar")][3] == str(tmp_path / "003.tar")


def test_listing_a_remote_shard_jumps_over_its_videos(tmp_path: Path, listed: Listed, web: tuple[str, Any]) -> None:
    address, server = web
    members = {
        f"{i}.{suffix}": data for i in range(4) for suffix, data in (("mp4", bytes(2_000_000)), ("txt", b"%d" % i))
    }
    write_shard(tmp_path / "s.tar", members)
    assert [row["caption"] for row in listed(f"{address}/s.tar")] == ["0", "1", "2", "3"]
    assert server.sent < 1_000_000


@pytest.mark.parametrize("cut", ["in a video", "in a caption", "in a header", "after a member", "overwritten"])
def test_a_damaged_shard_gives_what_stands_before_and_a_fault(tmp_path: Path, listed: Listed, cut: str) -> None:
    members = {"0.mp4": b"0" * 512, "0.txt": b"zero", "1.mp4": b"1" * 2048, "1.txt": b"one" * 500}
    path = write_shard(tmp_path / "s.tar", members)
    with tarfile.open(path) as tar:
        at = {info.name: info.offset for info in tar}
    data = path.read_bytes()
    ends = {
        "in a video": at["1.mp4"] + 900,
        "in a caption": at["1.txt"] + 600,
        "in a header": at["1.mp4"] + 100,
        "after a member": at["1.mp4"],
        "overwritten": len(data),
    }
    data = data[: ends[cut]]
    if cut == "overwritten":
        data = data[: at["1.mp4"]] + b"\xff" * 512 + data[at["1.mp4"] + 512 :]
    path.write_bytes(data)
    rows = listed(path)
    assert (rows[0]["caption"], rows[0]["fault"]) == ("zero", None)
    assert rows[-1]["uri"] == str(path)
    assert rows[-1]["fault"].startswith("s.tar is damaged, and what follows is not read: ")


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.tar", "{0..1}.tar.gz"])
def test_a_compressed_shard_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / name, {"0.mp4": b"x"}, "w:gz")
    with pytest.raises(ValueError, match=r"^--input .*unpack it with gunzip"):
        sources.check(str(tmp_path / name))


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS")]
)
def test_a_shard_that_is_no_tar_is_called_what_it_is(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(ValueError, match=f"^--input .*: s.tar {words}"):
        sources.check(str(tmp_path / "s.tar"))


def test_shards_without_videos_and_columns_of_shards_are_refused(tmp_path: Path) -> None:
    shard = str(write_shard(tmp_path / "s.tar", {"0.jpg": b"x"}))
    with pytest.raises(ValueError, match="lists no video"):
        sources.check(shard)
    with pytest.raises(ValueError, match="tar shards have no columns"):
        sources.check(shard, caption_column="text")
    with pytest.raises(ValueError, match="runs backwards"):
        sources.check(str(tmp_path / "{9..1}.tar"))


@given(st.integers(0, 50), st.integers(0, 5), st.integers(1, 4))
def test_patterns_expand_as_zero_filled_ranges(low: int, count: int, width: int) -> None:
    pattern = f"a{{{low:0{width}}..{low + count}}}b{{0..1}}"
    expected = [
        f"a{str(i).zfill(max(width, len(str(low))))}b{j}"
        for i, j in itertools.product(range(low, low + count + 1), (0, 1))
    ]
    assert list(webdataset.expand(pattern)) == expected


def test_a_key_ends_at_the_first_dot_whatever_the_case_of_endings(tmp_path: Path, listed: Listed) -> None:
    members = {
        "./000.rgb.mp4": b"0",
        "000.txt": b"a cat",
        "a/001.MP4": b"1",
        "./a/001.TXT": "a dog".encode("utf-16"),
        "002.mp4": b"2",
        "002.caption.txt": b"a bird",
        "v.1.mp4": b"3",  # not of one key, for who does not know the rule
        "v.1.txt": b"one",
        "v.2.mp4": b"4",
        "v.2.txt": b"two",
        "003.mp4": b"5",
        "003.mp4.txt": b"a fish",
        "003.cls": b"7",
    }
    tally = sources.Tally()
    (table,) = sources.iter_videos(str(write_shard(tmp_path / "s.tar", members)), tally=tally)
    assert table["caption"].to_pylist() == ["a cat", "a dog", "a bird", "one", "two", "a fish"]
    assert table["fault"].null_count == 6
    assert tally.unknown == {".cls": 1}
    for number, row in enumerate(table.to_pylist()):
        with sources.open_video(row["uri"]) as file:
            assert not isinstance(file, str)
            assert file.read() == b"%d" % number


def test_links_in_a_shard_are_the_files_that_they_name(tmp_path: Path, listed: Listed) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in {"all/v.mp4": b"video", "all/t.txt": b"a cat"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        links = [("0.mp4", tarfile.LNKTYPE, "all/v.mp4"), ("in/1.mp4", tarfile.SYMTYPE, "../all/v.mp4"),
                 ("0.txt", tarfile.SYMTYPE, "./all/t.txt"), ("in/1.txt", tarfile.SYMTYPE, "../0.txt"),
                 ("2.mp4", tarfile.SYMTYPE, "gone.mp4")]  # fmt: skip
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    *rows, lost = listed(path)
    assert [row["caption"] for row in rows] == ["", "a cat", "a cat"]
    for row in rows:
        with sources.open_video(row["uri"]) as file:
            assert not isinstance(file, str)
            assert file.read() == b"video"
    assert lost["fault"] == "s.tar 2.mp4 is a link to gone.mp4, which is not there"


def test_a_bad_shard_is_a_fault_also_where_it_is_the_first(tmp_path: Path, listed: Listed) -> None:
    (tmp_path / "0.tar").write_bytes(b"no tar file at all" * 100)
    write_shard(tmp_path / "1.tar", {"a.mp4": b"a", "a.txt": b"a boat"})
    rows = listed(tmp_path)
    assert [row["caption"] for row in rows] == ["", "a boat"]
    assert "0.tar is no tar file" in rows[0]["fault"]
    with pytest.raises(ValueError, match=r"0\.tar is no tar file"):
        listed(tmp_path / "0.tar")


def test_captions_headers_and_members_of_a_shard_have_limits(
    tmp_path: Path, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {"a.mp4": b"a", "a.txt": bytes(2 << 20), "b.mp4": b"b", "b.txt": b"x" * 10_001, "c.mp4": b"c"}
    rows = listed(write_shard(tmp_path / "s.tar", members))
    assert "2,097,152 bytes, and at most 1,048,576" in rows[0]["fault"]
    assert "10,001 characters, and at most 10,000" in rows[1]["fault"]
    assert rows[2]["fault"] is None

    with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))
        large = tarfile.TarInfo("b.mp4")
        large.pax_headers = {"comment": "x" * (3 << 20)}
        tar.addfile(large)
    rows = listed(tmp_path / "p.tar")
    assert rows[0]["fault"] is None
    assert "a header has 3,14" in rows[1]["fault"]

    monkeypatch.setattr(webdataset, "MAX_MEMBERS", 2)
    assert "more than 2 members; split it" in listed(tmp_path / "s.tar")[-1]["fault"]
