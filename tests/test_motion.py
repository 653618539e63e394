"""Motion score and buckets."""

import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from cinemo import motion
from cinemo.motion import OFFICIAL_MOTION, UNIFORM_MOTION, motion_bucket, motion_id, motion_score, neighbour_ssim
from cinemo.video import VIDEO_SUFFIXES, VideoError, probe, sample_clip


def reference(frames: np.ndarray) -> np.ndarray:
    pairs = itertools.pairwise(frames)
    return np.array([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs])


@st.composite
def clips(draw: st.DrawFn) -> np.ndarray:
    """uint8 (N, H, W, 3) of any size from 7 x 7: flat parts, saturated ones, noise of any strength, gradients."""
    count, height, width = draw(st.integers(2, 5)), draw(st.integers(7, 40)), draw(st.integers(7, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = draw(st.integers(0, 255))
    noise = generator.integers(low, draw(st.integers(low, 255)) + 1, (count, height, width, 3))
    brighter = draw(st.integers(-60, 60)) * np.arange(count)[:, None, None, None]
    slope = draw(st.integers(-9, 9)) * np.arange(width)[:, None] + brighter
    frames = np.clip(noise + slope, 0, 255).astype(np.uint8)
    if draw(st.booleans()):
        frames[:, : draw(st.integers(1, height))] = draw(st.sampled_from([0, 1, 128, 254, 255]))
    if draw(st.booleans()):
        frames[draw(st.integers(0, count - 1))] = draw(st.sampled_from([0, 255]))
    return frames


@settings(deadline=None, max_examples=150)
@given(clips())
def test_equals_scikit_image_on_any_content(frames: np.ndarray) -> None:
    ours = neighbour_ssim(frames)
    np.testing.assert_allclose(ours, reference(frames), rtol=0, atol=1e-6)
    assert ours.dtype == np.float64
    assert ours.max() <= 1


def test_equals_scikit_image_at_training_size() -> None:
    photo = np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(photo, (k, 2 * k), (0, 1)) for k in range(4)])
    np.testing.assert_allclose(neighbour_ssim(frames), reference(frames), rtol=0, atol=1e-6)


def test_memory_order_does_not_matter(moving_frames: np.ndarray) -> None:
    views = [moving_frames[::3, 1::2, ::-1, ::-1], moving_frames[:5].transpose(0, 2, 1, 3), moving_frames[:4, 5:44, 3:]]
    for view in views:
        assert not view.flags.c_contiguous
        np.testing.assert_allclose(neighbour_ssim(view), reference(view), rtol=0, atol=1e-6)
    read_only = moving_frames[:3].copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(neighbour_ssim(read_only), neighbour_ssim(moving_frames[:3]))


def test_threads_score_at_once(moving_frames: np.ndarray) -> None:
    parts = [moving_frames[k : k + 6] for k in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(motion_score, parts))
    assert together == [motion_score(part) for part in parts]


def test_a_machine_without_a_writable_cache_scores_all_the_same(tmp_path: Path) -> None:
    shutil.copy(motion.__file__, tmp_path / "alone.py")
    (tmp_path / "__pycache__").write_text("a file where numba would make its folder; this stops root too")
    code = "import numpy, alone; print(alone.motion_score(numpy.full((2, 8, 8, 3), 9, 'uint8')))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    environment.pop("NUMBA_CACHE_DIR", None)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("1.0\n", "")


def test_only_a_score_loads_numba() -> None:
    code = (
        "import sys, cinemo.motion as m; m.motion_bucket(0.5); print('numba' in sys.modules, 'skimage' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False False"


def test_equals_scikit_image_on_real_clips(shared_clips: Path) -> None:
    scored = 0
    for path in sorted(p for p in shared_clips.rglob("*") if p.suffix in VIDEO_SUFFIXES):
        interval = max(1, min(3, (probe(path).num_frames - 1) // 15))
        try:
            frames = sample_clip(path, 0, interval, 16, (160, 256))
        except VideoError:
            continue
        expected = reference(frames)
        np.testing.assert_allclose(neighbour_ssim(frames), expected, rtol=0, atol=1e-6)
        assert abs(motion_score(frames) - expected.mean()) <= 1e-6
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


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16])
def test_frames_of_another_dtype_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match=f"frames are {np.dtype(dtype)} .*pass uint8"):
        motion_score(np.zeros((2, 16, 16, 3), dtype))
