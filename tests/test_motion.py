"""Motion score and buckets."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from cinemo.motion import OFFICIAL_MOTION, UNIFORM_MOTION, motion_bucket, motion_id, motion_score
from cinemo.video import VIDEO_SUFFIXES, VideoError, probe, sample_clip


def test_equals_scikit_image_on_real_clips(shared_clips: Path) -> None:
    scored = 0
    for path in sorted(p for p in shared_clips.rglob("*") if p.suffix in VIDEO_SUFFIXES):
        interval = max(1, min(3, (probe(path).num_frames - 1) // 15))
        try:
            frames = sample_clip(path, 0, interval, 16, (160, 256))
        except VideoError:
            continue
        pairs = itertools.pairwise(frames)
        expected = np.mean([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs])
        assert abs(motion_score(frames) - expected) <= 1e-4
        scored += 1
    assert scored >= 5


def test_a_still_clip_scores_one_and_noise_near_zero() -> None:
    still = np.full((3, 16, 16, 3), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    assert motion_score(still) == 1.0
    assert abs(motion_score(noise)) < 0.05


def test_faster_motion_scores_lower(moving_frames: np.ndarray) -> None:
    scores = [motion_score(moving_frames[::step][:10]) for step in (1, 2, 4)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(("score", "bucket"), [(1.0, 0), (0.9500001, 0), (0.949, 1), (0.5, 10), (0.0, 19), (-0.3, 19)])
def test_buckets_are_uniform_and_zero_is_still(score: float, bucket: int) -> None:
    assert motion_bucket(score) == bucket


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_more_motion_never_gives_a_smaller_bucket(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= motion_bucket(high) <= motion_bucket(low) <= 19


@pytest.mark.parametrize("score", [1.01, float("nan")])
def test_what_is_no_ssim_has_no_bucket(score: float) -> None:
    with pytest.raises(ValueError, match="motion score"):
        motion_bucket(score)


def test_ids_follow_the_model_s_mapping() -> None:
    assert [motion_id(b, UNIFORM_MOTION) for b in (0, 7, 19)] == [0, 7, 19]
    assert [motion_id(b, OFFICIAL_MOTION) for b in (0, 7, 19)] == [99, 92, 80]  # 100 - slider, slider 1..20


@pytest.mark.parametrize("bucket", [-1, 20, 25, 3.5])
def test_a_bucket_outside_the_range_is_named(bucket: float) -> None:
    with pytest.raises(ValueError, match=f"motion_bucket {bucket} is outside 0..19"):
        motion_id(bucket, UNIFORM_MOTION)  # type: ignore[arg-type]


def test_an_unknown_mapping_is_refused() -> None:
    with pytest.raises(ValueError, match="optical-flow"):
        motion_id(3, {"kind": "optical-flow"})


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (4, 6, 16, 3), (4, 16, 16), (4, 16, 16, 4)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frames are"):
        motion_score(np.zeros(shape, np.uint8))
