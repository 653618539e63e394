"""Sampling clips from video files and writing them."""

import pickle
from pathlib import Path

import av
import numpy as np
import pytest

from cinemo.video import VideoError, probe, sample_clip, write_video


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
        with av.open(str(shared_clips / name)) as container:
            every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        for start, interval in ((0, 1), (len(every) // 2, 1), (len(every) - 1 - 7, 1), (3, 3)):
            assert np.array_equal(sample_clip(shared_clips / name, start, interval, 8), every[start::interval][:8])


def test_a_size_is_covered_and_cut_to_its_centre(moving_video: Path, moving_frames: np.ndarray) -> None:
    clip = sample_clip(moving_video, 0, 1, 4, (36, 36))
    assert clip.shape == (4, 36, 36, 3)
    halved = moving_frames[0].reshape(36, 2, 48, 2, 3).mean(axis=(1, 3))
    assert difference(clip[0], halved[:, 6:42]) < 6


def test_rotation_metadata_is_honoured(shared_clips: Path) -> None:
    upright = sample_clip(shared_clips / "rotated_90.mov", 0, 1, 3)
    assert upright.shape == (3, 568, 320, 3)
    assert sample_clip(shared_clips / "rotated_90.mov", 0, 1, 3, (96, 64)).shape == (3, 96, 64, 3)


@pytest.mark.parametrize(
    ("start", "interval", "reason"), [(50, 1, "too_short"), (0, 4, "too_short"), (500, 1, "too_short")]
)
def test_a_span_past_the_end_is_too_short(moving_video: Path, start: int, interval: int, reason: str) -> None:
    with pytest.raises(VideoError) as caught:
        sample_clip(moving_video, start, interval, 16)
    assert caught.value.reason == reason


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


def test_a_broken_file_gives_its_readable_part_and_a_reason_for_the_rest(shared_clips: Path) -> None:
    path = shared_clips / "bad" / "corrupted.mp4"
    assert sample_clip(path, 0, 1, 4, (64, 96)).shape == (4, 64, 96, 3)
    with pytest.raises(VideoError) as caught:
        sample_clip(path, 0, 3, 16, (64, 96))
    assert caught.value.reason == "corrupt"


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoError("too_short", "video x ends before frame 9")))
    assert (error.reason, str(error)) == ("too_short", "video x ends before frame 9")


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
@pytest.mark.parametrize("shape", [(5, 32, 48, 3), (2, 33, 47, 3)])
def test_every_format_and_odd_sizes_are_written(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    from PIL import Image

    path = tmp_path / "new" / f"clip{suffix}"
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_video(path, frames, fps=8)
    if suffix == ".mp4":
        assert probe(path) == (shape[0], 8.0, shape[2] + shape[2] % 2, shape[1] + shape[1] % 2)
    else:
        assert getattr(Image.open(path), "n_frames", 1) == shape[0]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left


@pytest.mark.parametrize(
    ("name", "fps", "words"), [("a.txt", 8, "ends in .txt"), ("a", 8, "ends in nothing"), ("a.mp4", 0, "fps 0")]
)
def test_bad_output_is_named_before_anything_is_written(tmp_path: Path, name: str, fps: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_video(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), fps)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="frames are"):
        write_video(path, np.zeros((2, 16, 16, 3), np.float32))
    assert path.read_bytes() == b"old"
