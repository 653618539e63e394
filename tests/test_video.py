"""Sampling clips from video files: which frames, and their colours."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from cinemo.video import VideoError, read_span, sample_clip, shown_size
from cinemo.videodecode import decode_from
from cinemo.videofile import open_video
from cinemo.videopixels import render_all
from tests.videos import corners, encode, quadrants

CORNERS = corners(quadrants())


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize(("start", "interval", "count"), [(0, 1, 16), (7, 3, 16), (44, 1, 16), (59, 5, 1), (13, 10, 5)])
def test_gives_exactly_the_frames_that_were_asked_for(
    moving_video: Path, moving_frames: np.ndarray, start: int, interval: int, count: int
) -> None:
    clip = sample_clip(moving_video, start, interval, count)
    wanted = range(start, start + interval * count, interval)
    for got, index in zip(clip, wanted, strict=True):
        distances = [difference(got, frame) for frame in moving_frames]
        assert int(np.argmin(distances)) == index


def test_seeking_gives_the_same_pixels_as_decoding_everything(shared_clips: Path) -> None:
    for name in ("bikes.mp4", "nasa_13013.mp4", "arm_wrestling.mp4", "h265_10bits.mp4"):
        with open_video(shared_clips / name) as video:
            every = list(render_all(video.container.decode(video.stream), None, video.pixel_aspect))
        for start, interval in ((0, 1), (len(every) // 2, 1), (len(every) - 1 - 7, 1), (3, 3)):
            assert np.array_equal(sample_clip(shared_clips / name, start, interval, 8), every[start::interval][:8])


def test_a_size_is_covered_and_cut_to_its_centre(moving_video: Path, moving_frames: np.ndarray) -> None:
    clip = sample_clip(moving_video, 0, 1, 4, (36, 36))
    assert clip.shape == (4, 36, 36, 3)
    halved = moving_frames[0].reshape(36, 2, 48, 2, 3).mean(axis=(1, 3))
    assert difference(clip[0], halved[:, 6:42]) < 6


def test_rotation_metadata_is_honoured(shared_clips: Path) -> None:
    upright = sample_clip(shared_clips / "rotated_90.mov", 0, 1, 3)
    assert upright.shape == (3, *shown_size(shared_clips / "rotated_90.mov"), 3) == (3, 568, 320, 3)
    assert sample_clip(shared_clips / "rotated_90.mov", 0, 1, 3, (96, 64)).shape == (3, 96, 64, 3)


@pytest.mark.parametrize(
    ("start", "interval", "reason"), [(50, 1, "too_short"), (0, 4, "too_short"), (500, 1, "too_short")]
)
def test_a_span_past_the_end_is_too_short(moving_video: Path, start: int, interval: int, reason: str) -> None:
    with pytest.raises(VideoError) as caught:
        sample_clip(moving_video, start, interval, 16)
    assert caught.value.reason == reason


def test_a_broken_file_gives_its_readable_part_and_a_reason_for_the_rest(shared_clips: Path) -> None:
    path = shared_clips / "bad" / "corrupted.mp4"
    assert sample_clip(path, 0, 1, 4, (64, 96)).shape == (4, 64, 96, 3)
    with pytest.raises(VideoError) as caught:
        sample_clip(path, 0, 3, 16, (64, 96))
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options", "tolerance"),
    [
        ("plain.mp4", "libx264", "yuv420p", {"crf": "1"}, 3),
        ("ten_bit.mp4", "libx264", "yuv420p10le", {"crf": "1"}, 3),
        ("four_four_four.mp4", "libx264", "yuv444p", {"crf": "1"}, 3),
        ("rgb.mkv", "ffv1", "bgr0", {}, 0),
        ("interlaced.mp4", "libx264", "yuv420p", {"crf": "1", "x264-params": "tff=1"}, 3),
        ("interlaced.mpg", "mpeg2video", "yuv420p", {"flags": "+ildct+ilme", "qmin": "1", "qmax": "2"}, 6),
        ("vp9.webm", "libvpx-vp9", "yuv420p", {"crf": "4", "b": "0", "cpu-used": "8"}, 6),
        ("prores.mov", "prores_ks", "yuv422p10le", {}, 6),
        ("anim.gif", "gif", "rgb8", {}, 3),
    ],
)
def test_colours_survive(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str], tolerance: int
) -> None:
    path = encode(tmp_path / name, [quadrants()] * 6, codec, pix_fmt, options=options)
    for picture in sample_clip(path, 1, 2, 2):
        assert np.abs(np.subtract(corners(picture), CORNERS)).max() <= tolerance


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("tagged.mp4", "libx264", "yuv420p"), ("j.mkv", "mjpeg", "yuvj420p"), ("deep.mp4", "libx264", "yuv420p10le")],
)
def test_full_range_white_is_255_and_grey_stays(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    picture = np.full((64, 96, 3), 255, np.uint8)
    picture[:, 48:], picture[:32, 48:] = 235, 16  # limited range would stretch these to 255 and 0
    options = {"crf": "1"} if codec == "libx264" else {"qmin": "1", "qmax": "1"}
    path = encode(tmp_path / name, [picture] * 4, codec, pix_fmt, options=options, full_range=True)
    clip = sample_clip(path, 0, 1, 3)
    for got in clip:
        assert np.abs(np.subtract(corners(got), [[255] * 3, [16] * 3, [255] * 3, [235] * 3])).max() <= 2


@pytest.mark.parametrize("shape", [(63, 95), (64, 97), (33, 2)])
def test_odd_sizes_keep_every_row_and_column(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = encode(tmp_path / "odd.mkv", [quadrants(*shape)] * 3, "ffv1", "yuv444p")
    clip = sample_clip(path, 0, 1, 2)
    assert clip.shape == (2, *shape, 3)
    assert np.abs(clip[0].astype(int) - quadrants(*shape)).max() <= 3


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("default.mp4", ""),
        ("pyramid.mkv", "keyint=40:bframes=8:b-adapt=0:ref=6"),
        ("open_gop.mp4", "keyint=20:open-gop=1:bframes=3"),
        ("open_gop.ts", "keyint=20:open-gop=1:bframes=3"),
        ("interlaced.mp4", "keyint=40:tff=1"),
        ("intra_refresh.mp4", "keyint=30:intra-refresh=1"),
        ("transport.ts", "keyint=250"),
        ("old.avi", "keyint=40"),
    ],
)
def test_frames_nobody_needs_are_left_out_and_the_pixels_stay(
    tmp_path: Path, moving_frames: np.ndarray, name: str, params: str
) -> None:
    path = encode(tmp_path / name, np.concatenate([moving_frames] * 3), options={"x264-params": params})
    with av.open(str(path)) as container:
        every = list(render_all(container.decode(video=0), None))
    rng = np.random.default_rng(0)
    for _ in range(25):
        start, interval, count = (int(n) for n in rng.integers((0, 1, 1), (150, 9, 9)))
        count = min(count, (len(every) - 1 - start) // interval + 1)
        assert np.array_equal(sample_clip(path, start, interval, count), every[start::interval][:count])


def test_only_needed_frames_are_decoded(tmp_path: Path, moving_frames: np.ndarray) -> None:
    options = {"x264-params": "bframes=3:b-adapt=0:b-pyramid=none:keyint=250:scenecut=0"}
    path = encode(tmp_path / "long.mp4", np.concatenate([moving_frames] * 3), options=options)
    with open_video(path) as video:
        targets = [video.times.at(120 + 8 * k) for k in range(4)]
        lean, full = (sum(1 for _ in decode_from(video, targets, seen)) for seen in ([], None))
    assert full == 180  # this file is one group of pictures; the picker stops earlier, the decoder does not know where
    assert lean <= 145 // 4 + 6  # three frames of four are B-frames that no other refers to


def test_several_spans_of_one_opening_are_the_same_clips(moving_video: Path) -> None:
    spans = [(30, 1), (0, 3), (50, 2), (10, 1)]
    with open_video(moving_video) as video:
        for span in spans:
            if span == (50, 2):  # ends at frame 68 of 60
                with pytest.raises(VideoError) as caught:
                    read_span(video, *span, 10, None)
                assert caught.value.reason == "too_short"
            else:
                assert np.array_equal(read_span(video, *span, 10, None), sample_clip(moving_video, *span, 10))


def test_truncated_with_the_index_in_front_gives_what_is_there(tmp_path: Path, moving_frames: np.ndarray) -> None:
    whole = encode(tmp_path / "whole.mp4", moving_frames, container_options={"movflags": "+faststart"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: len(data) * 6 // 10])
    assert np.array_equal(sample_clip(cut, 0, 1, 8), sample_clip(whole, 0, 1, 8))
    with pytest.raises(VideoError, match=r"cut\.mp4 (is damaged|cannot be decoded)") as caught:
        sample_clip(cut, 20, 3, 13)
    assert caught.value.reason == "corrupt"


def test_memory_does_not_grow_over_two_hundred_clips(moving_video: Path) -> None:
    # In a process of its own, so that nothing else that the tests hold comes in.
    script = """
import os, sys
from cinemo.motion import motion_score
from cinemo.video import VideoError, sample_clip
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
def run(count):
    for k in range(count):
        motion_score(sample_clip(sys.argv[1], k % 30, 1 + k % 2, 16, (64, 96)))
        try:
            sample_clip(sys.argv[1], 59, 1, 16, (64, 96))
        except VideoError:
            pass
run(20)
before = resident()
run(200)
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", script, str(moving_video)], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) < 8  # MiB; the clips together are 56
