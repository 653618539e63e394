"""The models that are served, as a request is checked against them: sizes, lengths, defaults. Loads no weights.

Knows model directories. Knows nothing of replicas or HTTP.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cinemo import checkpoint
from cinemo.arguments import check_length, check_settings, check_size
from pipelines import models
from pipelines.serving.errors import ApiError
from pipelines.serving.schema import MAX_SEED, VideoRequest
from pipelines.serving.settings import Limits

FPS = 8.0  # default


@dataclass(frozen=True)
class Served:
    """What is known of a model without loading it."""

    name: str
    card: checkpoint.ModelCard
    scheduler: Any
    factor: int  # pixels a latent cell, per side
    fingerprint: str


def look_up(name: str, model: str) -> Served:
    """Read what a model directory says of itself. Raises ValueError when there is none."""
    directory = models.resolve(model)
    vae = json.loads((directory / checkpoint.vae_name(directory) / "config.json").read_text())
    return Served(
        name=name,
        card=checkpoint.read_card(directory),
        scheduler=checkpoint.load_scheduler(directory),
        factor=2 ** (len(vae["block_out_channels"]) - 1),
        fingerprint=checkpoint.fingerprint(directory),
    )


def complete(asked: VideoRequest, served: Served, limits: Limits) -> dict[str, Any]:
    """A request in which nothing is left open, as the store keeps it. Raises ApiError (422), naming the field."""
    if len(asked.prompt) > limits.max_prompt or len(asked.negative_prompt) > limits.max_prompt:
        name = "prompt" if len(asked.prompt) > limits.max_prompt else "negative_prompt"
        raise ApiError(422, f"{name} has more than {limits.max_prompt} characters", name)
    steps = min(served.card.steps, limits.max_steps) if asked.num_inference_steps is None else asked.num_inference_steps
    if steps > limits.max_steps:
        raise ApiError(422, f"num_inference_steps {steps} is more than {limits.max_steps}", "num_inference_steps")
    width, height = map(int, asked.size.split("x")) if asked.size else (None, None)
    frames = asked.num_frames or (served.card.lengths[0] if served.card.lengths else 16)
    with naming("size"):
        height, width = check_size(height, width, served.factor, served.card.sizes)
    with naming("num_frames"):
        check_length(frames, served.card.lengths)
    with naming("num_inference_steps"):
        check_settings(steps, asked.dct_timestep, "np", 1, served.scheduler)
    fps = frames_a_second(asked, frames)
    return {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "width": width,
        "height": height,
        "num_frames": frames,
        "fps": fps,
        "seed": secrets.randbelow(MAX_SEED) if asked.seed is None else asked.seed,
        "num_inference_steps": steps,
        "guidance_scale": served.card.guidance if asked.guidance_scale is None else asked.guidance_scale,
        **asked.model_dump(include={"motion_bucket", "dct_init", "dct_cutoff", "dct_timestep"}),
    }


@contextmanager
def naming(field: str) -> Iterator[None]:
    """A ValueError within is an ApiError (422) about this field."""
    try:
        yield
    except ValueError as error:
        raise ApiError(422, f"{field}: {error}", field) from None


def frames_a_second(asked: VideoRequest, frames: int) -> float:
    """How fast the video plays: as fps says, or so that it lasts `seconds`. Raises ApiError when the two disagree."""
    if asked.seconds is None:
        return asked.fps or FPS
    fps = frames / asked.seconds
    if asked.fps is not None and abs(asked.fps - fps) > 0.01 * fps:
        raise ApiError(
            422, f"seconds: {frames} frames at {asked.fps:g} a second are {frames / asked.fps:g} seconds", "seconds"
        )
    if not 1 <= fps <= 60:
        raise ApiError(422, f"seconds: {frames} frames last from {frames / 60:.2g} to {frames} seconds", "seconds")
    return round(fps, 4)
