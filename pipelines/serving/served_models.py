"""The models that are served: sizes, lengths and defaults, to check requests against. Loads no weights."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from cinemo.sidecar import Request
from cinemo.videowrite import MOST_FPS
from pipelines.animate import request
from pipelines.core import models
from pipelines.serving.http.errors import ApiError
from pipelines.serving.schema import VideoRequest
from pipelines.serving.settings import Limits


@dataclass(frozen=True)
class Served(models.Facts):
    """Properties of a model that are known without loading it, and its name in the API."""

    name: str


def look_up(name: str, model: str) -> Served:
    """Read the properties of a MODEL. Raises ValueError when there is no such model."""
    return Served(**vars(models.look_up(model)), name=name)


def complete(asked: VideoRequest, served: Served, limits: Limits) -> Request:
    """Complete a request with defaults, as the store keeps it. Raises ApiError (422), naming the field."""
    for name in ("prompt", "negative_prompt", "source_prompt"):
        if len(getattr(asked, name) or "") > limits.max_prompt:
            raise ApiError(422, f"{name} has more than {limits.max_prompt} characters", name)
    defaults: dict[str, Any] = {"seed": secrets.randbelow(request.MAX_SEED)} if asked.seed is None else {}
    if asked.num_inference_steps is None and asked.speed is None:
        defaults["num_inference_steps"] = min(served.card.steps, limits.max_steps)
    try:
        full = request.complete(asked.model_copy(update=defaults), asked.prompt, served, f".{asked.format}")
    except request.SettingError as error:
        raise ApiError(422, f"{error.field}: {error}", error.field) from None
    if (steps := full["num_inference_steps"]) > limits.max_steps:
        field = "num_inference_steps" if asked.speed is None else "speed"
        raise ApiError(422, f"{field}: {steps} steps are more than {limits.max_steps}", field)
    check_work(dict(full), limits.max_work, 1 + asked.extend)
    frames = full["num_frames"]
    total = played(frames + asked.extend * (frames - 1), asked.loop)
    made = {**full, **chosen(asked), "fps": frames_a_second(asked, total)}
    return cast(Request, made if total == frames else {**made, "total_frames": total})


def chosen(asked: VideoRequest) -> dict[str, Any]:
    """The settings that are stored only where they are not the default."""
    names = ("extend", "loop", "format", "preview")
    return {
        name: getattr(asked, name) for name in names if getattr(asked, name) != VideoRequest.model_fields[name].default
    }


def played(frames: int, loop: bool) -> int:
    """Number of frames of the finished video."""
    return 2 * frames - 2 if loop else frames


def work_of(full: Mapping[str, Any], clips: int = 1) -> int:
    """Pixels x frames x steps of a video. clips: how many are sampled."""
    return int(full["width"] * full["height"] * full["num_frames"] * full["num_inference_steps"] * clips)


def check_work(full: dict[str, Any], most: int, clips: int = 1) -> None:
    """Refuse a video that would occupy a replica for too long. clips: how many are sampled. Raises ApiError (422)."""
    width, height, frames, steps = (full[name] for name in ("width", "height", "num_frames", "num_inference_steps"))
    if (work := work_of(full, clips)) > most:
        raise ApiError(
            422,
            f"size: {width}x{height} pixels x {frames * clips} frames x {steps} steps are {work:,}, and at most "
            f"{most:,} are taken; ask for a smaller size, fewer frames or fewer steps",
            "size",
        )


def frames_a_second(asked: VideoRequest, frames: int) -> float:
    """Frame rate of the video: fps, or so that it lasts `seconds`. Raises ApiError (422) when the two disagree."""
    if asked.seconds is None:
        return asked.fps or request.FPS
    fps, most = frames / asked.seconds, min(60, MOST_FPS[f".{asked.format}"])
    if asked.fps is not None and abs(asked.fps - fps) > 0.01 * fps:
        raise ApiError(
            422, f"seconds: {frames} frames at {asked.fps:g} a second are {frames / asked.fps:g} seconds", "seconds"
        )
    if not 1 <= fps <= most:
        raise ApiError(422, f"seconds: {frames} frames last from {frames / most:.2g} to {frames} seconds", "seconds")
    return fps
