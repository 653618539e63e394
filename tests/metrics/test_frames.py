"""One clip's pixels: known clips have known numbers, and colours agree with an independent formula."""

import numpy as np
import pytest

from cinemo.metrics import frames as measures
from cinemo.synthetic import make_clip


def ramp(steps: list[int]) -> np.ndarray:
    """Grey frames of these levels."""
    return np.repeat(np.array(steps, np.uint8), 8 * 8 * 3).reshape(-1, 8, 8, 3)


def test_even_change_is_smooth_and_a_jump_is_abrupt() -> None:
    assert measures.smoothness(ramp([0, 10, 20, 30])) == 1.0
    assert measures.smoothness(ramp([0, 10, 0, 10])) == 0.0
    assert measures.smoothness(ramp([5, 5, 5])) == 1.0
    assert measures.abruptness(ramp([0, 10, 20, 30])) == 1.0
    assert measures.abruptness(ramp([0, 10, 20, 80, 90])) == 6.0
    assert measures.abruptness(ramp([5, 5, 5, 5])) == 1.0


def test_synthetic_motion_is_even_and_shuffled_frames_are_not() -> None:
    clip = make_clip(2, size=(64, 96), kinds=("pan",)).frames
    shuffled = clip[np.random.default_rng(0).permutation(len(clip))]
    assert measures.smoothness(clip) > 0.5 > 0.3 > measures.smoothness(shuffled)
    assert measures.abruptness(clip) < 1.5 < measures.abruptness(shuffled)


def test_colour_distances_are_those_of_the_cie_formulas() -> None:
    """sRGB -> XYZ (D65) -> Lab written out for two colours, as in CIE 15."""

    def lab(rgb: tuple[int, int, int]) -> np.ndarray:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb)]
        to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750]]
        to_xyz.append([0.0193339, 0.1191920, 0.9503041])
        ratio = np.array(to_xyz) @ linear / [0.95047, 1.0, 1.08883]
        x, y, z = [v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in ratio]
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    first, second = (200, 40, 90), (30, 120, 200)
    clip = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in (first, second)])
    expected = np.linalg.norm(lab(first) - lab(second))
    assert measures.colour_drift(clip) == pytest.approx([0, expected], abs=0.05)
    assert measures.mean_colour_drift(clip) == pytest.approx([0, expected], abs=0.05)


def test_mean_colour_hardly_sees_motion() -> None:
    pan = make_clip(2, size=(64, 96), kinds=("pan",)).frames
    picture = pan[0]
    rolled = np.stack([np.roll(picture, 4 * k, axis=1) for k in range(4)])
    assert measures.mean_colour_drift(rolled).max() < 1e-6
    assert measures.colour_drift(rolled)[1:].min() > 1


def test_the_photo_is_kept_or_not() -> None:
    clip = make_clip(1, size=(64, 96), num_frames=2).frames
    ratio, similar = measures.first_frame_fidelity(clip, clip[0])
    assert (ratio, similar) == (float("inf"), 1.0)
    off = np.clip(clip[0].astype(int) + 10, 0, 245).astype(np.uint8)
    ratio, similar = measures.first_frame_fidelity(np.minimum(clip, 235), np.minimum(off, 245))
    assert ratio == pytest.approx(20 * np.log10(255 / 10), abs=0.3)
    assert similar < 1
    with pytest.raises(ValueError, match="fit the image to them"):
        measures.first_frame_fidelity(clip, clip[0, :32])
