"""How many frames a video shows, and when: whatever its header says."""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cinemo.motion import motion_score
from cinemo.video import VideoError, load_clip, probe, sample_clip
from tests.videos import copy_packets, encode, number_of, numbered

X264 = {
    "B-frames": "keyint=30:bframes=3:b-adapt=0:scenecut=0",
    "one keyframe": "keyint=250:bframes=3:scenecut=0",
    "open GOP": "keyint=20:open-gop=1:bframes=3:scenecut=0",
    "no B-frames": "keyint=30:bframes=0",
}


def shown(path: Path) -> list[int]:
    """The numbers of all frames that a decoder gives from the beginning to the end."""
    with av.open(str(path)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def gives(path: Path, numbers: list[int]) -> None:
    """Assert that these are the frames of a video, taken all at once and in clips from anywhere."""
    assert probe(path).num_frames == len(numbers)
    assert [number_of(picture) for picture in sample_clip(path, 0, 1, len(numbers))] == numbers
    rng = np.random.default_rng(len(numbers))
    for start in rng.integers(0, len(numbers) - 8, 4).tolist():
        assert [number_of(picture) for picture in sample_clip(path, start, 2, 4)] == numbers[start::2][:4]
    with pytest.raises(VideoError) as caught:
        sample_clip(path, len(numbers) - 5, 1, 6)
    assert caught.value.reason == "too_short"


@pytest.mark.parametrize("kind", X264)
@pytest.mark.parametrize("second", [0.5, 1.29, 2.0])
def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path, kind: str, second: float) -> None:
    whole = encode(tmp_path / "whole.mp4", numbered(90), options={"x264-params": X264[kind]})
    cut = copy_packets(whole, tmp_path / "cut.mp4", earlier=second)
    first = -int(-second * 24 // 1)  # the first frame that is shown at 0 or later
    gives(cut, list(range(first, 90)))
    assert probe(cut).fps == 24


def test_a_long_lead_in_is_skipped(tmp_path: Path) -> None:
    frames = numbered(60) * 6
    whole = encode(tmp_path / "whole.mp4", frames, options={"x264-params": "keyint=2000:scenecut=0"})
    gives(copy_packets(whole, tmp_path / "cut.mp4", earlier=12.5), list(range(60)))


@pytest.mark.parametrize(
    "flags", ["frag_keyframe+empty_moov", "frag_keyframe", "faststart"], ids=["fragments", "index, then fragments", ""]
)
def test_fragments_are_counted_as_well(tmp_path: Path, flags: str) -> None:
    whole = encode(tmp_path / "whole.mp4", numbered(90), options={"x264-params": X264["B-frames"]})
    gives(copy_packets(whole, tmp_path / "a.mp4", container_options={"movflags": flags}), list(range(90)))


class Pipe(io.RawIOBase):
    """What a browser records into: nothing that was written can be mended at the end."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


@pytest.mark.parametrize("with_duration", [True, False])
@pytest.mark.parametrize("codec", ["libvpx", "libx264"])
def test_a_recording_of_a_browser_has_the_frames_that_it_shows(tmp_path: Path, codec: str, with_duration: bool) -> None:
    milliseconds = np.random.default_rng(1).integers(20, 48, 90).cumsum()
    options = {"b": "4M", "cpu-used": "8", "deadline": "realtime"} if codec == "libvpx" else {}
    path, pipe = tmp_path / "recording.mkv", Pipe()
    with av.open(str(path) if with_duration else pipe, "w", format="matroska") as container:
        stream: Any = container.add_stream(codec, rate=1000, options=options)
        stream.width, stream.height, stream.codec_context.time_base = 96, 64, Fraction(1, 1000)
        for picture, pts in zip(numbered(90), milliseconds.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes() if with_duration else pipe.data)
    if (at := data.find(b"\x23\xe3\x83\x84")) >= 0:
        data[at : at + 8] = b"\xec\x86" + bytes(6)  # the default duration of a frame, made a void
    path.write_bytes(data)
    gives(path, list(range(90)))
    expected = 89 * 1000 / (milliseconds[-1] - milliseconds[0])
    assert probe(path).fps == pytest.approx(expected, rel=1e-3)
    assert load_clip(path, 0, 1, 4, None).traits.variable_rate


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
def test_sound_that_outlasts_the_pictures_adds_no_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tail{suffix}"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        sound: Any = container.add_stream("aac", rate=8000)
        for picture in numbered(48):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        for k in range(40):  # 5 seconds
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, 1024 * k, Fraction(1, 8000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    gives(path, list(range(48)))
    assert probe(path).fps == 24


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_a_recording_that_begins_between_keyframes_begins_at_one(tmp_path: Path, suffix: str) -> None:
    whole = encode(tmp_path / "whole.mp4", numbered(90), options={"x264-params": X264["B-frames"]})
    gives(copy_packets(whole, tmp_path / f"late{suffix}", without=35), list(range(60, 90)))


def test_an_index_without_times_is_damaged(tmp_path: Path) -> None:
    data = bytearray(encode(tmp_path / "a.mp4", numbered(24)).read_bytes())
    struct.pack_into(">I", data, data.index(b"stts") + 16, 0)  # how long each frame is shown
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(VideoError):
        sample_clip(tmp_path / "a.mp4", 0, 1, 16)


def test_recordings_put_end_to_end_are_one_video(tmp_path: Path) -> None:
    one = encode(tmp_path / "one.ts", numbered(40)).read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    gives(tmp_path / "two.ts", list(range(40)) * 2)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mts", "libx264"), ("a.m2ts", "mpeg2video"), ("a.mpg", "mpeg2video"), ("a.vob", "mpeg2video"),
     ("a.m2v", "mpeg2video"), ("a.3gp", "mpeg4"), ("a.m4v", "mpeg4"), ("a.wmv", "wmv2"), ("a.flv", "flv"),
     ("b.flv", "libx264"), ("a.mxf", "mpeg2video"), ("a.avi", "mpeg4"), ("b.avi", "libx264"), ("a.qt", "mjpeg"),
     ("a.apng", "apng"), ("a.mkv", "libx265")],
)  # fmt: skip
def test_every_kind_of_file_has_the_frames_that_it_shows(tmp_path: Path, name: str, codec: str) -> None:
    fine = {"qmin": "1", "qmax": "2"}
    quiet = {"x265-params": "log-level=none"}
    options = {"libx264": {}, "apng": {}, "libx265": quiet, "mpeg2video": {**fine, "bf": "2"}}
    pix_fmt = {"mjpeg": "yuvj420p", "apng": "rgb24"}.get(codec, "yuv420p")
    container_options = {"f": "mov"} if name.endswith(".qt") else None
    path = tmp_path / name.replace(".qt", ".mov")
    encode(path, numbered(40), codec, pix_fmt, options=options.get(codec, fine), container_options=container_options)
    path = path.rename(tmp_path / name)
    gives(path, shown(path))
    assert len(shown(path)) == 40
    assert probe(path).fps == pytest.approx(24, rel=1e-3)


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4", "libx264"])
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "cut off"])
def test_an_avi_without_its_index_has_all_frames_that_were_written(tmp_path: Path, codec: str, killed: bool) -> None:
    path = encode(tmp_path / "a.avi", numbered(90), codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    data = path.read_bytes()
    data = bytearray(data[: data.rindex(b"idx1")])
    for name, at in ((b"avih", 24), (b"strh", 40)) if killed else ():
        struct.pack_into("<I", data, data.index(name) + at, 0)  # the number of frames, which is written last
    path.write_bytes(data)
    gives(path, list(range(90)))
    assert probe(path).fps == 24


@pytest.mark.parametrize("kind", ["webp", "png"])
@pytest.mark.parametrize(("delay", "fps"), [(0, 10), (10, 10), (11, 1000 / 11), (20, 50), (40, 25)])
def test_animated_pictures_are_as_fast_as_in_a_browser(tmp_path: Path, kind: str, delay: int, fps: float) -> None:
    first, *others = map(Image.fromarray, numbered(6))
    path = tmp_path / f"a.{kind}"
    first.save(path, save_all=True, append_images=others, duration=delay, lossless=True)
    assert (probe(path).num_frames, probe(path).fps) == (6, pytest.approx(fps))


def test_the_hidden_first_picture_of_an_animated_png_is_not_counted(tmp_path: Path) -> None:
    first, *others = map(Image.fromarray, numbered(14))
    first.save(tmp_path / "a.apng", format="png", save_all=True, append_images=others, duration=40, default_image=True)
    gives(tmp_path / "a.apng", list(range(1, 14)))


def test_where_the_frame_rate_varies_a_clip_has_the_video_s_frames_whenever_they_are_shown(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 12, 13, 14, 15, 20, 24, 30, 31]  # shown for 1 to 9 ticks
    frames = numbered(12)
    uneven = encode(tmp_path / "vfr.mkv", frames, "ffv1", "bgr0", times=times)
    even = encode(tmp_path / "cfr.mkv", frames, "ffv1", "bgr0")
    clip = sample_clip(uneven, 1, 2, 5)
    assert [number_of(picture) for picture in clip] == [1, 3, 5, 7, 9]
    assert motion_score(clip) == motion_score(sample_clip(even, 1, 2, 5))
    assert probe(uneven).fps == pytest.approx(24 * 11 / 31, rel=1e-3)
    assert load_clip(uneven, 0, 1, 2, None).traits.variable_rate
    assert not load_clip(even, 0, 1, 2, None).traits.variable_rate
