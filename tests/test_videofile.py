"""Opening video files: every way in which one cannot be used has its reason, and file objects are as good as paths."""

import errno
import http.server
import io
import os
import pickle
import shutil
import struct
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cinemo.video import VideoError, is_animated_webp, probe, sample_clip, write_video
from tests.videos import encode, number_of, numbered, quadrants


def reason(source: Any) -> tuple[str, str]:
    """The reason and the sentence, which probing and sampling must agree on."""
    told = []
    for read in (probe, lambda s: sample_clip(s, 0, 1, 1)):
        with pytest.raises(VideoError) as caught:
            read(source)
        told.append((caught.value.reason, str(caught.value)))
    assert told[0] == told[1]
    return told[0]


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    cases = {"missing.mp4": "missing", "text.mp4": "unreadable", "empty.mp4": "unreadable"}
    for name, reason in cases.items():
        with pytest.raises(VideoError) as caught:
            probe(tmp_path / name)
        assert caught.value.reason == reason
        assert name in str(caught.value)


def test_a_sound_file_has_no_video(tmp_path: Path) -> None:
    path = str(tmp_path / "sound.wav")
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == "no_video"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoError("too_short", "video x ends before frame 9")))
    assert (error.reason, str(error)) == ("too_short", "video x ends before frame 9")


def test_garbage_and_a_file_without_its_index_are_unreadable(tmp_path: Path, moving_video: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    plain = encode(tmp_path / "plain.mp4", [quadrants()] * 24)  # moov stands at its end
    (tmp_path / "cut.mp4").write_bytes(plain.read_bytes()[:-400])
    for name in ("noise.mp4", "cut.mp4"):
        told, message = reason(tmp_path / name)
        assert told == "unreadable"
        assert name in message


def test_what_is_mistaken_for_a_video_is_called_what_it_is(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mp4", [quadrants()] * 24).read_bytes()  # moov stands at its end
    unwritten = bytearray(whole[: whole.index(b"moov") - 4])
    struct.pack_into(">I", unwritten, whole.index(b"mdat") - 4, 0)  # its length, which is written last
    no_index = "is an MP4 without its index (moov): it was cut off, or is still being written"
    cases = {
        b"": "is empty (0 bytes)",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n": "is a pointer of Git LFS, which",
        b"\n<!DOCTYPE HTML><title>Log in</title>" + bytes(9000): "is a web page",
        whole[: whole.index(b"moov") - 4]: no_index,
        whole[: whole.index(b"mdat") + 300]: no_index,
        whole[:32]: no_index,
        bytes(unwritten): no_index,
    }
    for data, words in cases.items():
        (tmp_path / "clip.mp4").write_bytes(data)
        assert reason(tmp_path / "clip.mp4")[0] == reason(io.BytesIO(data))[0] == "unreadable"
        assert f"clip.mp4 {words}" in reason(tmp_path / "clip.mp4")[1]
        assert f"BytesIO {words}" in reason(io.BytesIO(data))[1]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp"])
def test_a_still_image_is_no_video(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{kind}.mp4"
    Image.fromarray(quadrants()).save(path, format={"jpg": "jpeg"}.get(kind, kind))
    told, message = reason(path)
    assert told == "no_video"
    assert "is a still image" in message


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(quadrants()).save(picture, format="jpeg")
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=8000)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(quadrants(), format="rgb24")))
        container.mux(cover.encode())
        container.mux(sound.encode())
    assert reason(path) == ("no_video", f"{path} has no video stream, only a cover picture")


def test_an_unknown_codec_is_unsupported(tmp_path: Path, moving_video: Path) -> None:
    path = tmp_path / "future.mp4"
    path.write_bytes(moving_video.read_bytes().replace(b"avc1", b"zzz9"))
    told, message = reason(path)
    assert told == "unsupported"
    assert "future.mp4 uses a codec" in message


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_an_absurd_size_is_too_large(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "huge.mkv"
    pix_fmt, options = ("yuv420p", {"preset": "ultrafast"}) if codec == "libx264" else ("yuvj420p", {})
    encode(path, [np.zeros((4800, 8200, 3), np.uint8)], codec, pix_fmt, options=options)
    told, message = reason(path)
    assert told == "too_large"
    assert "8200 x 4800" in message


@pytest.mark.parametrize("claimed", [30_000, 11_000_000, 2**31 - 1])
def test_an_absurd_number_of_frames_is_too_large(tmp_path: Path, claimed: int) -> None:
    data = bytearray(encode(tmp_path / "plain.mp4", [quadrants()] * 24).read_bytes())
    at = data.index(b"stts")  # version and flags, number of entries, then (frames, duration of each)
    assert struct.unpack_from(">III", data, at + 4)[1:] == (1, 24)
    struct.pack_into(">I", data, at + 12, claimed)
    path = tmp_path / "liar.mp4"
    path.write_bytes(data)
    assert len(data) < 30_000
    told, message = reason(path)
    assert told == "too_large"
    assert f"{claimed:,} frames" in message


def test_a_directory_with_a_videos_name_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    told, message = reason(tmp_path / "clip.mp4")
    assert told == "unreadable"
    assert "directory" in message


@contextmanager
def not_root() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_permission_denied_is_unreadable(moving_video: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "private.mp4")
        path.write_bytes(moving_video.read_bytes())
        path.chmod(0)
        with not_root():
            told, message = reason(path)
    assert told == "unreadable"
    assert "ermission" in message


@pytest.mark.parametrize("kind", ["bytes", "file", "unnamed", "tar"])
def test_a_file_object_is_as_good_as_its_path(tmp_path: Path, moving_video: Path, kind: str) -> None:
    expected = sample_clip(moving_video, 11, 2, 5)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(moving_video, "000/clip.mp4")
    with tarfile.open(tmp_path / "shard.tar") as tar, tempfile.TemporaryFile() as unnamed:
        unnamed.write(moving_video.read_bytes())  # and is left standing at its end
        source: Any = {
            "bytes": lambda: io.BytesIO(moving_video.read_bytes()),
            "file": lambda: moving_video.open("rb"),
            "unnamed": lambda: unnamed,
            "tar": lambda: tar.extractfile("000/clip.mp4"),
        }[kind]()
        assert probe(source) == probe(moving_video)
        assert np.array_equal(sample_clip(source, 11, 2, 5), expected)
        assert not source.closed


class Failing(io.BytesIO):
    """A file object of a remote store, which fails from its n-th read on."""

    name = "s3://bucket/clip.mp4"

    def __init__(self, data: bytes, error: OSError, after: int = 0) -> None:
        super().__init__(data)
        self.error, self.left = error, after

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(errno.ENOENT, "gone"), "missing"),
        (PermissionError(errno.EACCES, "denied"), "unreadable"),
        (ConnectionResetError("reset by peer"), "unreadable"),
        (TimeoutError("too slow"), "unreadable"),
    ],
)
def test_errors_of_a_file_object_have_a_reason_and_its_name(moving_video: Path, error: OSError, expected: str) -> None:
    told, message = reason(Failing(moving_video.read_bytes(), error))
    assert told == expected
    assert "s3://bucket/clip.mp4" in message


def test_a_store_that_fails_while_decoding_does_not_call_the_video_corrupt(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 128, 128, 3), np.uint8)
    data = encode(tmp_path / "noise.mp4", noise, container_options={"movflags": "+faststart"}).read_bytes()
    opening = Failing(data, OSError("connection lost"), after=10**6)
    probe(opening)
    source = Failing(data, OSError("connection lost"), after=10**6 - opening.left + 3)
    with pytest.raises(VideoError, match=r"clip\.mp4 cannot be read.*connection lost") as caught:
        sample_clip(source, 0, 2, 15)
    assert caught.value.reason == "unreadable"


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, moving_video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sample_clip(moving_video, 3, 2, 4)
    monkeypatch.chdir(tmp_path)
    for name in ("clip: take 1.mp4", "http:x.mp4", "concat:a.mp4|b.mp4", "file:x.mp4", "-i.mp4", "a%03d.mp4"):
        shutil.copyfile(moving_video, Path(tmp_path, name))
        assert np.array_equal(sample_clip(name, 3, 2, 4), expected)
    write_video("take: 2.mp4", expected)
    assert probe("take: 2.mp4").num_frames == 4


def test_an_animated_webp_is_opened_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.webp", np.stack(numbered(6)))
    data = (tmp_path / "a.webp").read_bytes()
    assert is_animated_webp(data[:21])
    assert [number_of(picture) for picture in sample_clip(io.BytesIO(data), 1, 2, 3)] == [1, 3, 5]
    Image.fromarray(quadrants()).save(tmp_path / "still.webp")
    assert not is_animated_webp((tmp_path / "still.webp").read_bytes()[:21])
    (tmp_path / "cut.webp").write_bytes(data[: len(data) // 2])
    assert reason(tmp_path / "cut.webp")[0] == "corrupt"
    monkeypatch.setattr("cinemo.videofile.MAX_ANIMATION_PIXELS", 6 * 64 * 96 - 1)
    assert reason(tmp_path / "a.webp")[0] == "too_large"


def test_a_file_object_of_no_video_is_named_as_well(moving_video: Path) -> None:
    assert reason(io.BytesIO(b"not a video"))[1].startswith("video in a BytesIO cannot be opened")
    assert reason(io.BytesIO())[0] == "unreadable"


def test_a_playlist_makes_nobody_fetch_an_address() -> None:
    asked: list[str] = []

    class Segment(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Segment) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/segment.ts"
        playlist = io.BytesIO(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n".encode())
        playlist.name = "s3://bucket/video.m3u8"  # as an object of a bucket
        with pytest.raises(VideoError):
            probe(playlist)
        server.shutdown()
    assert asked == []


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile {path}\n",
    "list.mp4": "ffconcat version 1.0\nfile {path}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_no_other_file(name: str, tmp_path: Path) -> None:
    encode(tmp_path / "private.ts", numbered(4))
    (tmp_path / name).write_text(PLAYLISTS[name].format(path="private.ts"))
    assert reason(tmp_path / name)[0] == "unreadable"
