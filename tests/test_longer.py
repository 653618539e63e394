"""Chains and loops: that clips join, and what the drift says."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from cinemo import CinemoPipeline
from cinemo.image import fit_pixels
from cinemo.latents import encode_pixels
from cinemo.longer import drift, extend, loop
from cinemo.synthetic.images import photo

SMALL = {"num_frames": 4, "height": 64, "width": 96, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CinemoPipeline:
    return CinemoPipeline.from_pretrained(checkpoint, vae="frame")


def test_a_chain_begins_as_the_clip_alone_and_each_part_goes_on_from_the_last_frame(pipe: CinemoPipeline) -> None:
    image = photo("coffee.png")
    clips = extend(pipe, image, "x", more=2, seed=5, **SMALL)
    assert [len(clip) for clip in clips] == [4, 3, 3]
    alone = pipe(image, "x", seed=5, **SMALL).frames[0]
    assert np.abs(clips[0].astype(int) - alone).max() <= 1
    residuals = pipe(image, "x", seed=5, output_type="latent", **SMALL).frames
    last = encode_pixels(pipe.vae, fit_pixels(image, 64, 96))[:, :, None] + residuals[:, :, -1:]
    again = pipe(None, "x", seed=6, image_latents=last, num_frames=4, num_inference_steps=2).frames[0]
    assert np.abs(again[0].astype(int) - clips[0][-1]).max() <= 1  # it begins where the first ended
    assert np.abs(again[1:].astype(int) - clips[1]).max() <= 1


def test_a_loop_s_seam_is_a_step_of_the_clip() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    played = loop(frames)
    assert len(played) == 8
    assert np.array_equal(played[0], frames[0])
    assert np.array_equal(played[-1], frames[1])  # before it starts again with frame 0
    steps = {(a.tobytes(), b.tobytes()) for a, b in itertools.pairwise(frames)}
    for a, b in zip(played, np.roll(played, -1, axis=0), strict=True):
        assert {(a.tobytes(), b.tobytes()), (b.tobytes(), a.tobytes())} & steps


def test_drift_grows_with_the_colour_and_not_with_motion() -> None:
    picture = photo("coffee.png")[:64, :64]
    moved = np.stack([np.roll(picture, k, axis=1) for k in range(4)])
    redder = moved.copy()
    redder[-1, ..., 0] = np.minimum(255, redder[-1, ..., 0].astype(int) + 40)
    assert drift([moved, moved]) == pytest.approx([0, 0], abs=1e-6)
    first, second = drift([moved, redder])
    assert first < 0.1 < 5 < second
