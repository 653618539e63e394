"""What goes over HTTP: the request for a video, the video object, errors; in the shape of the OpenAI Videos API."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from pipelines.animate import request
from pipelines.animate.request import Text
from pipelines.serving.store import Job


class VideoRequest(request.Settings, frozen=True):
    """Settings of a video, as form fields (then numbers are text) or JSON. `input_reference` comes beside them."""

    prompt: Text = Field(description="what should happen, in English; may be empty")
    model: Text | None = Field(None, description="one of GET /v1/models; default: the first")
    seconds: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False,
        description="length of the video; with num_frames it sets fps; default: num_frames / fps",
    )  # fmt: skip
    seed: int | None = Field(
        None, ge=0, le=request.MAX_SEED, description="the same seed gives the same video; default: random"
    )
    webhook_url: Text | None = Field(
        None, max_length=2000, description="URL to which the video's end is reported, where the service allows it"
    )
    # An official client sends this when it waits for nothing.
    user: Text | None = Field(None, max_length=256, description="not used; taken for compatibility")


class Failure(BaseModel):
    """Why a video is not made."""

    code: str = Field(description="cancelled, server_error or invalid_request")
    message: str


class Video(BaseModel):
    """A video, made or to be made."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100, description="percent of the denoising steps; 100 when the video can be fetched")
    model: str
    prompt: str
    size: str = Field(description="WIDTHxHEIGHT in pixels")
    seconds: str = Field(description="length, as text, as OpenAI has it")
    created_at: int = Field(description="seconds since 1970")
    completed_at: int | None = Field(None, description="seconds since 1970, for one that failed too")
    expires_at: int | None = Field(None, description="seconds since 1970; then the video is deleted")
    error: Failure | None = None
    remixed_from_video_id: None = None
    fps: float
    num_frames: int
    seed: int
    motion_bucket: int = Field(description="asked for: 0 (still) to 19")
    measured_motion_bucket: int | None = Field(None, description="measured in the finished video")
    negative_prompt: str
    fit: Literal["crop", "pad"] = Field(description="how the image was brought to the size")
    cut_away: float | None = Field(None, description="share of the image that is in no frame; fit=pad shows all of it")
    num_inference_steps: int
    guidance_scale: float
    dct_init: bool
    dct_cutoff: float
    dct_timestep: int
    warnings: list[str] = Field([], description="fields of the request that were ignored")


class VideoPage(BaseModel):
    """A part of the list of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    """What is left of a video."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970: when the service began")
    owned_by: str = "cinemo"
    fingerprint: str
    sizes: list[str] | None = Field(description="WIDTHxHEIGHT that it takes; null: any that divide by the VAE's factor")
    lengths: list[int] | None = Field(description="numbers of frames that it takes; null: 2 to 64")
    num_inference_steps: int = Field(description="default")
    guidance_scale: float = Field(description="default")
    prompts: list[str] | None = Field(description="examples of what it was trained to animate")


class ModelList(BaseModel):
    """The models that are served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """What was wrong: OpenAI's error object."""

    message: str
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error")
    param: str | None = Field(description="the field that was wrong")
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer from 400 on."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (400, 401, 404, 405, 409, 413, 415, 422, 429, 503)
}


def to_video(job: Job) -> Video:
    """The object that clients see of a job."""
    asked: Mapping[str, Any] = job.request
    return Video(
        id=job.id,
        status=job.status,
        progress=job.progress,
        model=job.model,
        size=f"{asked['width']}x{asked['height']}",
        seconds=f"{asked['num_frames'] / asked['fps']:g}",
        created_at=int(job.created_at),
        completed_at=None if job.ended_at is None else int(job.ended_at),
        expires_at=None if job.expires_at is None else int(job.expires_at),
        error=None if job.error is None else Failure(**job.error),
        measured_motion_bucket=(job.result or {}).get("motion_bucket"),
        **{"fit": "crop", **{name: value for name, value in asked.items() if name in Video.model_fields}},
    )


def request_body() -> dict[str, Any]:
    """What OpenAPI says of the body of a request for a video: the same fields, as a form or as JSON."""
    fields = VideoRequest.model_json_schema()
    as_form = {"type": "string", "format": "binary", "description": "the image: JPEG, PNG, WebP, ..."}
    as_json = {"type": "string", "pattern": "^data:", "description": "the image: data:TYPE;base64,DATA"}

    def with_image(image: dict[str, Any]) -> dict[str, Any]:
        properties = {"input_reference": image, **fields["properties"]}
        required = ["prompt", "input_reference"]
        return {"schema": {**fields, "properties": properties, "required": required, "additionalProperties": True}}

    content = {"multipart/form-data": with_image(as_form), "application/json": with_image(as_json)}
    return {"requestBody": {"required": True, "content": content}}
