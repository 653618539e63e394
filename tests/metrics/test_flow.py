"""Motion by optical flow, on clips whose motion is known."""

import numpy as np
import pytest

from cinemo.metrics.flow import agrees, measure
from cinemo.synthetic import make_clip
from cinemo.synthetic.images import photo


def test_the_judge_of_directions_knows_true_motion_and_its_opposite() -> None:
    judged = 0
    for seed in range(16):
        clip = make_clip(seed, kinds=("pan", "zoom", "rotate", "object"), held_out=True)
        right = agrees(measure(clip.frames)[0], clip.kind, clip.direction)
        wrong = agrees(measure(clip.frames[::-1])[0], clip.kind, clip.direction)  # time backwards turns all around
        judged += bool(right) and not wrong
    assert judged >= 15


def test_a_stretch_is_wide_and_neither_a_zoom_nor_a_pan_is() -> None:
    for kind, wide in (("stretch", True), ("zoom", False), ("pan", False)):
        motions = [measure(make_clip(seed, kinds=(kind,), held_out=True).frames)[0] for seed in (0, 2)]
        assert [agrees(motion, "stretch", "wide") for motion in motions] == [wide] * 2


def test_a_pan_is_measured_in_frame_heights() -> None:
    picture = photo("coffee.png")[40:168, :400]
    frames = np.stack([picture[:, 100 + 3 * k : 292 + 3 * k] for k in range(9)])  # content moves left
    motion, consistency = measure(frames)
    assert motion.right == pytest.approx(-24 / 128, rel=0.1)
    assert abs(motion.down) < 0.02
    assert consistency > 0.95


def test_content_that_changes_is_inconsistent_and_a_still_clip_is_not() -> None:
    still = np.repeat(photo("coffee.png")[None, :128, :192], 5, axis=0)
    motion, consistency = measure(still)
    assert consistency == pytest.approx(1.0, abs=1e-6)
    assert max(map(abs, motion)) < 1e-3
    noise = np.random.default_rng(0).integers(-40, 40, still.shape)
    flickering = np.clip(still + noise, 0, 255).astype(np.uint8)
    assert measure(flickering)[1] < 0.8


def test_kinds_without_a_direction_are_not_judged_and_no_motion_agrees_with_none() -> None:
    motion, _ = measure(np.repeat(photo("coffee.png")[None, :64, :96], 2, axis=0))
    assert agrees(motion, "sway", "none") is None
    assert agrees(motion, "pan", "left") is False
    assert agrees(motion, "pan", "right") is False
