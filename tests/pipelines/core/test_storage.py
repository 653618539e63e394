"""Files appear whole or not at all, and a rerun changes none."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest

from pipelines.core import storage


def test_put_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    uri = str(tmp_path / "new" / "file.bin")
    storage.put(uri, b"one")
    storage.put(uri, b"two")
    assert storage.read(uri) == b"two"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.bin"]


def test_data_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def sync(path: str) -> None:
        synced.append(Path(path).read_bytes())
        assert not (tmp_path / "a").exists()

    monkeypatch.setattr(storage, "sync", sync)
    storage.put(str(tmp_path / "a"), b"all of it")
    assert synced == [b"all of it"]


def test_a_folder_is_on_the_disk_with_all_below_it_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "unet" / "weights").write_bytes(b"1")
    (tmp_path / "model" / "card").write_bytes(b"2")
    synced: list[str] = []
    monkeypatch.setattr(storage, "sync", synced.append)
    storage.sync_folder(str(tmp_path / "model"))
    assert {Path(path) for path in synced} == {tmp_path, *(tmp_path.rglob("*"))}
    assert synced[-1] == str(tmp_path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"")
    with pytest.raises(OSError, match="a"):
        storage.put(str(tmp_path / "a"), b"a folder stands there")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


def test_a_file_that_was_being_written_when_the_job_died_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".part-1.parquet.0a1b2c3d").write_bytes(b"half")
    (tmp_path / ".part-2.parquet").write_bytes(b"half")
    (tmp_path / "part-3.PARQUET").write_bytes(b"whole")
    assert storage.list_files(str(tmp_path), (".parquet",)) == [str(tmp_path / "part-3.PARQUET")]
    assert storage.list_files(str(tmp_path / "nowhere"), (".parquet",)) == []


def test_what_killed_writes_left_is_deleted_once_it_is_old_and_nothing_else(tmp_path: Path) -> None:
    names = [".a.jsonl.0a1b2c3d", ".a.jsonl.0a1b2c3x", ".a.jsonl", "b.0a1b2c3d", ".0a1b2c3d"]
    for name in (*names, ".new.jsonl.0a1b2c3d"):
        (tmp_path / name).write_bytes(b"half")
    for name in names:
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".folder.0a1b2c3d").mkdir()
    assert storage.remove_temporary_files(str(tmp_path), 3600) == 1
    assert storage.remove_temporary_files(str(tmp_path / "nowhere"), 3600) == 0
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*names[1:], ".new.jsonl.0a1b2c3d", ".folder.0a1b2c3d"}
    with (tmp_path / "b.0a1b2c3d").open("rb") as file:
        file.read(2)
        storage.put_file(str(tmp_path / "copy"), file)
    assert storage.read(str(tmp_path / "copy")) == b"half"


def test_json_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.json")
    storage.put_json(uri, {"a": 1})
    before = (tmp_path / "a.json").stat()
    storage.put_json(uri, {"a": 1})
    after = (tmp_path / "a.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_columns_of_a_folder_without_files_are_an_empty_table(tmp_path: Path) -> None:
    tables = storage.scan(str(tmp_path / "data"), pa.schema([("uri", pa.string())]))
    assert sum(table.num_rows for table in tables) == 0


def test_file_uris_and_relative_paths_name_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("x/") == storage.absolute(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert not storage.is_local("s3://bucket/x")


def test_escapes_of_a_file_uri_are_undone_unless_a_file_has_that_name(tmp_path: Path) -> None:
    for name in ("my clip: 1.mp4", "ä #1.mp4", "100%.mp4", "a::b.mp4"):
        assert storage.absolute((tmp_path / name).as_uri()) == str(tmp_path / name)
    uri = f"file://{tmp_path}/a%20b"
    assert storage.absolute(uri) == storage.absolute(uri.replace("//", "", 1)) == str(tmp_path / "a b")
    assert storage.absolute(uri.replace("//", "//localhost", 1)) == str(tmp_path / "a b")
    (tmp_path / "a%20b").touch()
    assert storage.absolute(uri) == str(tmp_path / "a%20b")


def test_names_are_joined_and_resolved_in_chains_too(tmp_path: Path) -> None:
    assert storage.join("out", "data", "a") == "out/data/a"
    assert storage.join("s3://b/x/", "a") == storage.resolve("s3://b/x", "./y/../a") == "s3://b/x/a"
    assert storage.join("zip://::/x.zip", "a") == storage.resolve("zip://::/x.zip", "a") == "zip://a::/x.zip"
    assert storage.resolve("s3://b/x", "y\\a") == "s3://b/x/y/a"
    assert storage.resolve("s3://b/x", "/a") == storage.resolve("/x", "file:///a") == "/a"
    (tmp_path / "y\\a").touch()
    assert storage.resolve(str(tmp_path), "y\\a") == str(tmp_path / "y\\a")


def test_a_scheme_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot open gopher://x/y"):
        storage.read("gopher://x/y")


def test_a_folder_comes_back_from_where_it_was_uploaded(tmp_path: Path) -> None:
    (tmp_path / "a" / "part").mkdir(parents=True)
    (tmp_path / "a" / "part" / "file.bin").write_bytes(b"one")
    storage.upload(tmp_path / "a", str(tmp_path / "there"))
    back = storage.download(str(tmp_path / "there"), tmp_path / "new" / "b")
    assert (back / "part" / "file.bin").read_bytes() == b"one"
    (tmp_path / "a" / "part" / "file.bin").rename(tmp_path / "a" / "new.bin")
    storage.upload(tmp_path / "a", str(tmp_path / "there"))
    assert [path.name for path in (tmp_path / "there").rglob("*") if path.is_file()] == ["new.bin"]


def test_a_bucket_keeps_its_client_until_its_credentials_change(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = storage.filesystem("s3://videos")[0]
    for uri in ("s3://videos", "s3://videos/", "s3://videos/a//b", "s3://videos/a=1/b_c-d.mp4", "s3://videos/a%20b"):
        assert storage.filesystem(uri) == pyarrow.fs.FileSystem.from_uri(uri)
    assert storage.filesystem("s3://videos/a.mp4")[0] is client
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert storage.filesystem("s3://videos/a.mp4")[0] is not client
