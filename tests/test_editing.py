"""Inversion against the official numbers; and that it undoes sampling."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from cinemo import CinemoPipeline
from cinemo.editing import edit_video
from cinemo.latents import decode_latents, encode_frames, to_pixels
from cinemo.motion import motion_bucket, motion_score
from cinemo.synthetic import make_clip


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CinemoPipeline:
    return CinemoPipeline.from_pretrained(checkpoint, vae="frame")


@pytest.fixture(scope="module")
def builtin() -> CinemoPipeline:
    return CinemoPipeline.from_pretrained("builtin:tiny")


def test_inversion_arrives_at_the_official_noise(golden: Any, pipe: CinemoPipeline) -> None:
    case = golden("inversion")
    found = pipe.invert(
        None,
        str(case["prompt"]),
        raw_motion_id=int(case["motion_bucket_id"]),
        num_inference_steps=int(case["num_inference_steps"]),
        image_latents=torch.from_numpy(case["base_content"]),
        latents=torch.from_numpy(case["motion_latents"]),
    ).numpy()
    expected = case["latents_final"]
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) <= 1e-5


def test_frames_and_their_latents_are_inverted_alike(pipe: CinemoPipeline) -> None:
    frames = make_clip(5, size=(64, 96), num_frames=4).frames
    encoded = encode_frames(pipe.vae, frames[None])
    image = encoded[:, :, :1]
    by_latents = pipe.invert(None, "x", num_inference_steps=2, image_latents=image, latents=encoded[:, :, 1:] - image)
    assert torch.allclose(pipe.invert(frames, "x", num_inference_steps=2), by_latents)


def test_sampling_from_the_inverted_noise_returns_the_video_and_better_with_more_steps(
    builtin: CinemoPipeline,
) -> None:
    """What the VAE keeps of the video is the most that can come back, so that is what it is compared with."""
    clip = make_clip(3, (320, 512), kinds=("pan",), held_out=True)
    kept = decode_latents(builtin.vae, encode_frames(builtin.vae, clip.frames[None]), images=to_pixels(clip.frames[:1]))
    found = []
    for steps in (4, 16):
        edited = edit_video(
            builtin, clip.frames, clip.frames[0], clip.caption, motion_bucket=8, num_inference_steps=steps
        )
        found.append(peak_signal_noise_ratio(kept[0, 1:], edited[1:]))
    assert found[1] > 34
    assert found[1] > found[0] + 4


def test_an_edited_frame_gets_the_motion_and_dctinit_has_a_say(pipe: CinemoPipeline) -> None:
    frames = make_clip(5, size=(64, 96), num_frames=4).frames
    wish = {"num_inference_steps": 2, "motion_bucket": 8}
    plain = edit_video(pipe, frames, 255 - frames[0], "x", **wish)
    refined = edit_video(pipe, frames, 255 - frames[0], "x", dct_init=True, **wish)
    assert plain.shape == frames.shape
    assert not np.array_equal(plain[1:], refined[1:])
    assert np.array_equal(plain[0], refined[0])
    measured = wish | {"motion_bucket": motion_bucket(motion_score(frames))}
    usual = edit_video(pipe, frames, 255 - frames[0], "x", num_inference_steps=2)
    assert np.array_equal(usual, edit_video(pipe, frames, 255 - frames[0], "x", **measured))


def test_what_cannot_be_edited_is_refused_in_one_sentence(pipe: CinemoPipeline) -> None:
    frames = make_clip(5, size=(64, 96), num_frames=4).frames
    with pytest.raises(ValueError, match="image is 64 x 64 pixels, and the video's frames are 96 x 64"):
        edit_video(pipe, frames, frames[0, :, :64], "x")
    with pytest.raises(ValueError, match=r"video_frames are uint8 \(0, 64, 96, 3\); pass uint8"):
        pipe.invert(frames[:0], "x")
    with pytest.raises(ValueError, match="image_latents and latents go together"):
        pipe.invert(frames, "x", latents=torch.zeros(1, 4, 3, 8, 12))
    with pytest.raises(ValueError, match="num_inference_steps 0"):
        pipe.invert(frames, "x", num_inference_steps=0)
