"""What goes over HTTP: the request for a video, the video object, errors; in the shape of the OpenAI Videos API."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from pipelines.animate import request, requested_adapters
from pipelines.animate.request import Text, VideoFormat
from pipelines.serving.store import Job

FILES = {  # that come beside the fields of a request
    "input_reference": "the image: JPEG, PNG, WebP, ...",
    "video": "the video: MP4, WebM, GIF, ...; or the id of one of this service",
    "reference_video": "a video whose measured motion bucket is requested",
}


class VideoRequest(request.Settings, frozen=True):
    """Settings of a video, as form fields (then numbers are text) or JSON. FILES come beside them."""

    prompt: Text = Field(description="what should happen, in English; may be empty")
    model: Text | None = Field(None, description="one of GET /v1/models; default: the first")
    seconds: float | None = Field(
        None, gt=0, le=3600, allow_inf_nan=False,
        description="length of the video; with num_frames it sets fps; default: num_frames / fps. In an extension: the "
        "length of what is added",
    )  # fmt: skip
    seed: int | None = Field(
        None, ge=0, le=request.MAX_SEED, description="the same seed gives the same video; default: random"
    )
    lora: Annotated[request.Adapters, WithJsonSchema({"type": "string"})] = Field(
        default_factory=list, max_length=requested_adapters.MOST,
        description="LoRA adapters of the model, which GET /v1/models lists: NAME[:weight], separated by commas",
    )  # fmt: skip
    extend: int = Field(0, ge=0, le=31, description="further clips, each from the last frame of the one before")
    loop: bool = Field(False, description="forward and back again, so that it repeats seamlessly")
    format: VideoFormat = Field("mp4", description="kind of video file")
    preview: bool = Field(False, description="send small pictures of the unfinished video in its events")
    source_prompt: Text | None = Field(
        None, max_length=2000, description="what the video to edit shows; default: its own prompt, else prompt"
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
    remixed_from_video_id: str | None = Field(None, description="the video that was edited or extended")
    fps: float
    num_frames: int = Field(description="frames of a clip; with extend or loop, the video has more")
    lora: str | None = Field(None, description="adapters that act, NAME:weight, separated by commas")
    extend: int = Field(0, description="further clips")
    loop: bool = False
    format: VideoFormat = "mp4"
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


class Preview(BaseModel):
    """A picture of the last frame of an unfinished video."""

    id: str
    object: Literal["video.preview"] = "video.preview"
    progress: int = Field(description="percent")
    b64_json: str = Field(description="a WebP of a few kB, in base64")


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


class Adapter(BaseModel):
    """A LoRA adapter that requests may name in `lora`."""

    id: str
    trigger_words: str | None = Field(description="text that every caption of its training has; put it into the prompt")


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
    motion_bucket: int = Field(description="default")
    prompts: list[str] | None = Field(description="examples of what it was trained to animate")
    loras: list[Adapter] = Field([], description="its LoRA adapters")


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
    code: {"model": ErrorBody} for code in (400, 401, 404, 405, 408, 409, 413, 415, 422, 429, 503)
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
        seconds=f"{asked.get('total_frames', asked['num_frames']) / asked['fps']:g}",
        created_at=int(job.created_at),
        completed_at=None if job.ended_at is None else int(job.ended_at),
        expires_at=None if job.expires_at is None else int(job.expires_at),
        error=None if job.error is None else Failure(**job.error),
        remixed_from_video_id=asked.get("source_video_id"),
        measured_motion_bucket=(job.result or {}).get("motion_bucket"),
        **{
            "fit": "crop",
            **{name: value for name, value in asked.items() if name in Video.model_fields},
            "lora": requested_adapters.text_of(asked),
        },
    )


def to_preview(job: Job) -> Preview | None:
    """The newest preview of an open job; None if there is none."""
    picture = (job.result or {}).get("preview") if job.is_open else None
    return None if picture is None else Preview(id=job.id, progress=job.progress, b64_json=picture)


def request_body(required: str | None, *optional: str) -> dict[str, Any]:
    """Describe the body of a request for a video for OpenAPI: the same fields and FILES, as a form or as JSON.

    required, optional: names of the files. None: no file is required.
    """
    fields = VideoRequest.model_json_schema()
    names = [name for name in (required, *optional) if name]

    def with_files(as_json: bool) -> dict[str, Any]:
        kind = {"type": "string", "pattern": "^data:"} if as_json else {"type": "string", "format": "binary"}
        hint = "; as data:TYPE;base64,DATA" if as_json else ""
        files = {name: {**kind, "description": FILES[name] + hint} for name in names}
        needed = ["prompt", required] if required else ["prompt"]
        return {
            "schema": {
                **fields,
                "properties": files | fields["properties"],
                "required": needed,
                "additionalProperties": True,
            }
        }

    content = {"multipart/form-data": with_files(False), "application/json": with_files(True)}
    return {"requestBody": {"required": True, "content": content}}
