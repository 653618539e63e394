"""The bytes of a video's files are what was put in."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from pipelines.animate import videos


@pytest.mark.parametrize(("ending", "decibels"), [(".mp4", 30), (".webp", 25), (".gif", 15)])
def test_every_kind_of_file_shows_the_frames(moving_frames: np.ndarray, ending: str, decibels: float) -> None:
    frames = moving_frames[:6]
    shown = videos.read(videos.video(frames, 8, ending), len(frames), ending)
    assert shown.shape == frames.shape
    for ours, theirs in zip(shown, frames, strict=True):
        assert peak_signal_noise_ratio(theirs, ours) > decibels


def test_a_spritesheet_of_a_long_video_is_no_higher_than_a_jpeg_can_be() -> None:
    sheet = Image.open(io.BytesIO(videos.spritesheet(np.zeros((960, 320, 16, 3), np.uint8))))
    assert sheet.size == (5 * 16, 192 * 320)
    with pytest.raises(ValueError, match="a picture of 16 x 70000 pixels"):
        videos.encoded(Image.new("RGB", (16, 70_000)), "JPEG")


def test_a_spritesheet_has_every_frame_in_its_place(moving_frames: np.ndarray) -> None:
    frames = moving_frames[:6]
    sheet = np.asarray(Image.open(io.BytesIO(videos.spritesheet(frames))))
    height, width = frames.shape[1:3]
    assert sheet.shape == (2 * height, 4 * width, 3)
    for place, frame in enumerate(frames):
        top, left = place // 4 * height, place % 4 * width
        assert peak_signal_noise_ratio(frame, sheet[top : top + height, left : left + width]) > 25


def test_a_thumbnail_is_no_wider_than_asked_for(moving_frames: np.ndarray) -> None:
    small = Image.open(io.BytesIO(videos.thumbnail(moving_frames[0], 48)))
    assert small.size == (48, 36)
    assert Image.open(io.BytesIO(videos.thumbnail(moving_frames[0]))).size == (96, 72)


def test_motion_is_measured_as_the_paper_says(moving_frames: np.ndarray) -> None:
    from skimage.metrics import structural_similarity

    frames = moving_frames[:4]
    score = np.mean(
        [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in itertools.pairwise(frames)]
    )
    found = videos.measured(frames)
    assert found["motion_score"] == pytest.approx(score, abs=1e-5)
    assert found["motion_bucket"] == int((1 - score) * 20)
