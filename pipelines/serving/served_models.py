"""The models that are served: sizes, lengths and defaults, to check requests against. Loads no weights."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from cinemo.sidecar import Request
from cinemo.videowrite import MOST_FPS
from pipelines.animate import request, requested_adapters
from pipelines.core import models
from pipelines.serving.http.errors import ApiError
from pipelines.serving.schema import VideoRequest
from pipelines.serving.settings import Limits


@dataclass(frozen=True)
class Served(models.Facts):
    """Properties of a model that are known without loading it, its name in the API, and its adapters."""

    name: str
    # By name; None: it fits another model.
    loras: Mapping[str, requested_adapters.Known | None] = field(default_factory=dict)

    def adapter(self, name: str) -> requested_adapters.Known:
        """Find an adapter that is served for this model. Raises ValueError."""
        known = self.loras.get(name)
        if known is None:
            why = f"is an adapter of another model than {self.name}" if name in self.loras else "is not served"
            names = ", ".join(own for own, found in self.loras.items() if found is not None)
            raise ValueError(f"{name[:100]} {why}; {f'use {names}' if names else 'there are none'}")
        return known


def look_up(name: str, model: str, loras: Mapping[str, str] | None = None) -> Served:
    """Read the properties of a MODEL and its adapters. Raises ValueError if one of them is missing.

    name: of the model in the API. loras: name -> place of all adapters that are served, also of other models.
    """
    found = {lora: find_adapter(lora, place, model) for lora, place in (loras or {}).items()}
    return Served(**vars(models.look_up(model)), name=name, loras=found)


def find_adapter(name: str, place: str, model: str) -> requested_adapters.Known | None:
    """Look up an adapter; None if it was trained on another MODEL. Raises ValueError.

    name: in the API, which the result has as its place.
    """
    try:
        return requested_adapters.look_up(place, model)._replace(place=name)
    except requested_adapters.OtherBaseError:
        return None


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
