"""One video by its uri, from wherever it lies, without fetching more than is read."""

import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cinemo.video import VideoError, probe, sample_clip
from pipelines import sources
from pipelines.sources import media, places
from tests.pipelines.sources.conftest import Listed


def test_a_local_path_is_given_as_it_is(video: Path) -> None:
    for uri in (str(video), f"file://{video}", f"{video.parent}/../{video.parent.name}/v.mp4"):
        with sources.open_video(uri) as path:
            assert path == str(video)


def test_a_video_in_a_zip_file_plays(tmp_path: Path, video: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(video, "a/b.mp4")
    uri = f"zip://a/b.mp4::file://{tmp_path}/x.zip"
    with sources.open_video(uri) as file:
        assert not isinstance(file, str)
        assert file.name == f"zip://a/b.mp4::{tmp_path}/x.zip"
        np.testing.assert_array_equal(sample_clip(file, 3, 4, 2), sample_clip(video, 3, 4, 2))


@pytest.mark.parametrize("web", [True, False], indirect=True, ids=["ranges", "no ranges"])
def test_a_video_on_a_web_server_plays(tmp_path: Path, video: Path, web: tuple[str, Any]) -> None:
    (tmp_path / "v.mp4").write_bytes(video.read_bytes())
    with sources.open_video(f"{web[0]}/v.mp4") as file:
        assert not isinstance(file, str)
        assert file.name == f"{web[0]}/v.mp4"
        np.testing.assert_array_equal(sample_clip(file, 3, 4, 2), sample_clip(video, 3, 4, 2))


def test_what_is_not_read_is_not_fetched_and_nothing_is_fetched_twice(tmp_path: Path, web: tuple[str, Any]) -> None:
    address, server = web
    data = np.random.default_rng(0).bytes(24 * media.BLOCK)
    (tmp_path / "large.mp4").write_bytes(data)
    with sources.open_video(f"{address}/large.mp4") as file:
        assert not isinstance(file, str)
        for at in (0, len(data) - 1000, 0, 10 * media.BLOCK, 10 * media.BLOCK + 70_000, len(data) - 500):
            file.seek(at)
            assert file.read(400) == data[at : at + 400]
    assert server.sent <= 4 * media.BLOCK


def test_an_s3_object_plays(bucket: Any, video: Path) -> None:
    bucket.put(str(video), "videos/deep/v.mp4")
    with sources.open_video("s3://videos/deep/v.mp4") as file:
        assert not isinstance(file, str)
        assert probe(file) == probe(video)


def test_what_is_missing_is_said_to_be(tmp_path: Path, bucket: Any, web: tuple[str, Any]) -> None:
    for uri in (str(tmp_path / "no.mp4"), "s3://videos/no.mp4", f"{web[0]}/no.mp4", f"{tmp_path}/no.tar#a.mp4@512+9"):
        with pytest.raises(VideoError, match="does not exist") as caught, sources.open_video(uri):
            pass
        assert caught.value.reason == "missing"
        assert uri in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where it is not installed
    with pytest.raises(VideoError, match="install gcsfs") as caught, sources.open_video("gs://b/c.mp4"):
        pass
    assert caught.value.reason == "unreadable"
    with pytest.raises(ValueError, match=r"^--input gs://b/c.csv: .*install gcsfs"):
        sources.check("gs://b/c.csv")
    with (
        pytest.raises(VideoError, match="Protocol not known: nosuch") as caught,
        sources.open_video("nosuch://b/c.mp4"),
    ):
        pass
    assert caught.value.reason == "unreadable"


def test_a_server_that_goes_away_while_reading_is_an_oserror(tmp_path: Path, web: tuple[str, Any]) -> None:
    address, _ = web
    (tmp_path / "v.mp4").write_bytes(bytes(3 * media.BLOCK))
    with sources.open_video(f"{address}/v.mp4") as file:
        assert not isinstance(file, str)
        assert len(file.read(10)) == 10
        (tmp_path / "v.mp4").unlink()
        file.seek(2 * media.BLOCK)
        with pytest.raises(OSError):  # noqa: PT011 - the driver's words differ between versions
            file.read(10)


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_videos_that_are_cells_of_parquet_are_read(tmp_path: Path, listed: Listed, video: Path, kind: str) -> None:
    data = [video.read_bytes(), b"", video.read_bytes()]
    cells = data if kind == "bytes" else [{"bytes": one, "path": "a.mp4"} for one in data]
    table = pa.table({"video": cells, "text": ["one", "none", "three"]})
    pq.write_table(table, tmp_path / "list.parquet", row_group_size=2)
    rows = listed(tmp_path / "list.parquet")
    assert [row["caption"] for row in rows] == ["one", "none", "three"]
    for row in (rows[2], rows[0]):
        with sources.open_video(row["uri"]) as file:
            assert probe(file).num_frames == 12
    with pytest.raises(VideoError, match="row 2: video is empty"), sources.open_video(rows[1]["uri"]):
        pass


def test_a_name_that_leads_to_a_private_address_is_not_opened(
    tmp_path: Path, video: Path, web: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(aiohttp.connector, "DefaultResolver", aiohttp.ThreadedResolver)
    monkeypatch.setattr(  # the name server of whoever wrote the list
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: resolve("127.0.0.1" if host == "videos.example" else host, *rest, **more),
    )
    (tmp_path / "v.mp4").write_bytes(video.read_bytes())
    uri, before = f"http://videos.example:{web[1].server_port}/v.mp4", web[1].sent
    with pytest.raises(VideoError, match=r"127\.0\.0\.1 is a private address") as caught, sources.open_video(uri):
        pass
    assert caught.value.reason == "unreadable"
    with pytest.raises(VideoError, match="does not exist"), sources.open_video(f"simplecache::{uri}"):
        pass
    assert web[1].sent == before
    monkeypatch.setenv("CINEMO_PRIVATE_HOSTS", "10.0.0.7,videos.example")
    with sources.open_video(uri) as file:
        assert not isinstance(file, str)
        assert probe(file) == probe(video)


PRIVATE = ["http://169.254.169.254/x.mp4", "http://a@10.0.0.7:9/x.mp4", "https://localhost/x.mp4", "http://[::1]/x.mp4"]


def test_lists_name_no_private_address_and_no_rare_protocol(
    tmp_path: Path, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = ["ftp://example.com/x.mp4", "webhdfs://example.com/x.mp4", "simplecache::http://127.0.0.1/x.mp4"]
    good = ["https://example.com/x.mp4", "s3://bucket/x.mp4", "x.mp4", "zip://x.mp4::https://example.com/x.zip"]
    (tmp_path / "list.csv").write_text("\n".join(["video", *PRIVATE, *odd, *good]))
    rows = listed(tmp_path / "list.csv")
    for row, name in zip(rows, PRIVATE + odd, strict=False):
        said = ("is a private address", "is not opened for a list", "Invalid IPv6 URL")
        assert any(words in row["fault"] for words in said), name
    assert [row["fault"] for row in rows[-len(good) :]] == [None] * len(good)
    monkeypatch.setenv("CINEMO_PRIVATE_HOSTS", "10.0.0.7")
    assert [row["fault"] is None for row in listed(tmp_path / "list.csv")][:4] == [False, True, False, False]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "::ffff:10.0.0.1",
        "::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "::ffff:0:7f00:1",
        "fec0::1",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_addresses_that_are_private_in_other_spellings(host: str) -> None:
    assert places.is_private(host)
    assert not places.is_private("93.184.216.34")
    assert not places.is_private("64:ff9b::5db8:d822")
    assert not places.is_private("2606:2800:220:1:248:1893:25c8:1946")


def test_a_list_on_a_private_host_may_name_files_there() -> None:
    assert places.file_of("a.mp4", "http://10.0.0.7/lists", "x") == "http://10.0.0.7/lists/a.mp4"
    assert places.file_of("http://10.0.0.7/a.mp4", "http://10.0.0.7/lists", "x") == "http://10.0.0.7/a.mp4"
    with pytest.raises(ValueError, match=r"^x is http://10\.0\.0\.8/a\.mp4: 10\.0\.0\.8 is a private address"):
        places.file_of("http://10.0.0.8/a.mp4", "http://10.0.0.7/lists", "x")
