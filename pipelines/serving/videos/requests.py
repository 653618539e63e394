"""Requests for videos: completed with a model's defaults, checked against it and the limits, and their work."""

import secrets
from collections.abc import Mapping
from typing import Any, cast

from cinemo.sidecar import Request
from cinemo.videowrite import MOST_FPS
from pipelines.animate import request, requested_adapters
from pipelines.serving.http.errors import ApiError
from pipelines.serving.schema import VideoRequest
from pipelines.serving.served_models import Served
from pipelines.serving.settings import Limits


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
        loras = requested_adapters.chosen(asked.lora, served.adapter)
    except request.SettingError as error:
        raise ApiError(422, f"{error.field}: {error}", error.field) from None
    if (steps := full["num_inference_steps"]) > limits.max_steps:
        field = "num_inference_steps" if asked.speed is None else "speed"
        raise ApiError(422, f"{field}: {steps} steps are more than {limits.max_steps}", field)
    check_work({**full, "extend": asked.extend}, limits.max_work)
    frames = full["num_frames"]
    total = played(frames + asked.extend * (frames - 1), asked.loop)
    made = {**full, **({"lora": loras} if loras else {}), **chosen(asked), "fps": frames_a_second(asked, total)}
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


def clips_of(asked: Mapping[str, Any]) -> int:
    """Number of clips that a complete request counts as: 2 for an edit, whose inversion takes as many steps again."""
    is_edit = "video_digest" in asked and "extend" not in asked
    return 2 if is_edit else 1 + int(asked.get("extend", 0))


def work_of(asked: Mapping[str, Any]) -> int:
    """Work of a complete request, for limits.max_work and turns between keys: pixels x frames x steps x clips."""
    steps = asked["num_inference_steps"] * clips_of(asked)
    return int(asked["width"] * asked["height"] * asked["num_frames"] * steps)


def check_work(asked: Mapping[str, Any], most: int) -> None:
    """Refuse a video that would occupy a replica for too long. asked: a complete request. Raises ApiError (422)."""
    width, height, frames, steps = (asked[name] for name in ("width", "height", "num_frames", "num_inference_steps"))
    if (work := work_of(asked)) > most:
        raise ApiError(
            422,
            f"size: {width}x{height} pixels x {frames * clips_of(asked)} frames x {steps} steps are {work:,}, and at "
            f"most {most:,} are taken; ask for a smaller size, fewer frames or fewer steps",
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
