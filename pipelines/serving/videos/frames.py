"""Make the frames of a batch of jobs: animate images, give images the motion of videos, or chain clips."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cinemo import CinemoPipeline, longer
from cinemo.editing import inverted_noise
from cinemo.image import fit_pixels, read_image
from cinemo.latents import encode_pixels
from cinemo.sidecar import Request
from pipelines.animate import request
from pipelines.serving.videos.inputs import Inputs
from pipelines.serving.videos.requests import clips_of

OnStep = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]  # CinemoPipeline's callback_on_step_end


def num_steps(asked: Request) -> int:
    """Number of steps that a request takes, of denoising and of inversion."""
    return asked["num_inference_steps"] * clips_of(asked)


def make(
    pipe: CinemoPipeline,
    asked: Sequence[Request],
    made_from: Sequence[Inputs],
    on_step: OnStep,
    on_inversion: Callable[[], object],
) -> list[np.ndarray]:
    """Make the videos of requests of one shape: uint8 (N, H, W, 3) each. Raises whatever the model raises.

    on_step: called after every denoising step; on_inversion: after every step of an inversion.
    """
    if "extend" in asked[0]:
        videos = [chain(pipe, one, inputs, on_step) for one, inputs in zip(asked, made_from, strict=True)]
    else:
        images: list[Any] = [inputs.image or inputs.frames[0] for inputs in made_from]  # type: ignore[index]
        videos = list(
            pipe(
                images,
                callback_on_step_end=on_step,
                **request.own(asked),
                **request.shared(asked[0]),
                **latents(pipe, asked, made_from, images, on_inversion),
            ).frames
        )
    return [longer.loop(video) if one.get("loop") else video for one, video in zip(asked, videos, strict=True)]


def latents(
    pipe: CinemoPipeline,
    asked: Sequence[Request],
    made_from: Sequence[Inputs],
    images: Sequence[Any],
    on_inversion: Callable[[], object],
) -> dict[str, torch.Tensor]:
    """Latents of edited images, and noise that carries the motion of their videos (cinemo.editing.edit_video).

    Arguments of CinemoPipeline; {} for requests without a video.
    """
    if made_from[0].frames is None:
        return {}
    same = request.shared(asked[0])
    pixels = [fit_pixels(read_image(image), same["height"], same["width"], exact=True) for image in images]
    image_latents = encode_pixels(pipe.vae, torch.cat(pixels))[:, :, None]
    noise = inverted_noise(
        pipe,
        np.stack([inputs.frames for inputs in made_from if inputs.frames is not None]),
        image_latents,
        [one.get("source_prompt", one["prompt"]) for one in asked],
        [one["motion_bucket"] for one in asked],
        **{name: same[name] for name in ("num_inference_steps", "dct_init", "dct_cutoff", "dct_timestep")},
        on_step=on_inversion,
    )
    return {"image_latents": image_latents, "latents": noise}


def chain(pipe: CinemoPipeline, asked: Request, inputs: Inputs, on_step: OnStep) -> np.ndarray:
    """Make a chain of clips from an image, or from the last frame of a video, which comes first: uint8 (N, H, W, 3)."""
    before = inputs.frames
    clips = longer.extend(
        pipe,
        inputs.image if before is None else before[-1],
        asked["prompt"],
        asked["extend"],
        seed=asked["seed"],
        negative_prompt=asked["negative_prompt"],
        motion_bucket=asked["motion_bucket"],
        guidance_scale=asked["guidance_scale"],
        callback_on_step_end=on_step,
        exact=before is not None,
        **request.shared(asked),
    )
    if before is None:
        return np.concatenate(clips)
    total = asked["total_frames"]
    whole = np.concatenate([before, clips[0][1:], *clips[1:]])  # the first clip begins with the video's last frame
    return whole[: total // 2 + 1 if asked.get("loop") else total]
