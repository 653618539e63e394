"""Complete a request by what it is made from: an image, or a video that is edited or extended.

The files are read in child processes (uploads.py). A job stores the frames of its video, at their size in the result,
so that a replica opens no uploaded video.
"""

import hashlib
import math
from typing import Any, NamedTuple

from cinemo.sidecar import Request
from cinemo.videowrite import check_fps
from pipelines.animate import request, requested_adapters
from pipelines.serving.http.dialect import IMAGE, REFERENCE
from pipelines.serving.http.errors import ApiError
from pipelines.serving.http.uploads import UploadReader
from pipelines.serving.schema import VideoRequest
from pipelines.serving.served_models import Served
from pipelines.serving.settings import Limits
from pipelines.serving.store import Job
from pipelines.serving.videos.inputs import Inputs
from pipelines.serving.videos.requests import check_work, complete, played

MAX_CLIPS = 32  # most clips that an extension adds
INHERITED = ("model", "size", "num_frames", "fps", "motion_bucket", "negative_prompt", "format")


class Source(NamedTuple):
    """The files of a request, as bytes."""

    image: bytes  # b"": none
    video: bytes | None = None  # to edit or to extend
    reference: bytes | None = None  # whose motion bucket is requested
    job: Job | None = None  # that made the video, if it was this service
    extends: bool = False

    def digest(self) -> bytes:
        """Bytes that tell requests apart: the SHA-256 of each file and of the operation; for an image alone, itself."""
        if self.video is None and self.reference is None:
            return self.image
        files = (self.image, self.video or b"", self.reference or b"", b"extend" * self.extends)
        return b"".join(hashlib.sha256(file).digest() for file in files)


def inherited(job: Job, fields: dict[str, Any], extends: bool, served: Served | None) -> dict[str, Any]:
    """Complete the fields of a request by those of the job whose video it edits or extends.

    served: the requested model; None if it is not served. In place of a size or length that it does not have, it gets
    the size nearest in aspect, and the next smaller length.
    """
    made: dict[str, Any] = {
        "model": job.model,
        **job.request,
        "size": f"{job.request['width']}x{job.request['height']}",
    }
    own = {name: made[name] for name in INHERITED if name in made}
    if served is not None and served.card.sizes and (made["height"], made["width"]) not in served.card.sizes:
        del own["size"]
    if served is not None and (lengths := served.card.lengths) and made["num_frames"] not in lengths:
        own["num_frames"] = max((length for length in lengths if length < made["num_frames"]), default=None)
    if loras := requested_adapters.text_of(job.request):
        own["lora"] = loras
    if "seconds" in fields and not extends:  # sets another fps
        del own["fps"]
    return {**own, **fields}


def check_inherited(job: Job, served: Served, own: Served | None) -> None:
    """Check that a model has the adapters that a request takes over from the job whose video it edits or extends.

    own: the model of the job, if it is still served. Raises ApiError (422) about the field to change: `model`, or
    `lora` if the model is the video's.
    """
    for one in job.request.get("lora", []):
        if served.loras.get(one["name"]) is not None:
            continue
        made_with = f"{job.id} was made with the adapter {one['name']}"
        if served.name == job.model:
            raise ApiError(422, f"lora: {made_with}, which is no longer served; send lora empty", "lora")
        remedy = "send lora empty"
        if own is not None and own.loras.get(one["name"]) is not None:
            remedy += f", or leave out model to use {job.model}"
        raise ApiError(422, f"model: {made_with}, which is not served for {served.name}; {remedy}", "model")


async def prepare(
    asked: VideoRequest, source: Source, served: Served, limits: Limits, reader: UploadReader
) -> tuple[Request, Inputs]:
    """Complete a request with its files: (the request as stored, what the job stores beside it). Raises ApiError."""
    if source.video is None:
        if asked.source_prompt is not None:
            raise ApiError(422, "source_prompt: is for a video that is edited; leave it out", "source_prompt")
        return await animated(asked, source, served, limits, reader)
    for field, given, why in (
        ("fit", asked.fit != "crop", "a video's frames are cropped to the size"),
        ("extend", asked.extend > 0, "POST /v1/videos/extensions extends a video, by seconds"),
        (REFERENCE, source.reference is not None, "the motion is that of the video"),
    ):
        if given:
            raise ApiError(422, f"{field}: {why}; leave it out", field)
    made, inputs = await (extended if source.extends else edited)(asked, source, served, limits, reader)
    if source.job is not None:
        made = {**made, "source_video_id": source.job.id}
    return made, inputs


async def animated(
    asked: VideoRequest, source: Source, served: Served, limits: Limits, reader: UploadReader
) -> tuple[Request, Inputs]:
    """Complete a request to animate an image, perhaps with the motion bucket that is measured in a video."""
    made = complete(asked, served, limits)
    size = await reader.size(source.image)
    made = request.fitted(made, *size)
    check_work(made, limits.max_work)
    if source.reference is not None:
        if asked.motion_bucket is not None:
            raise ApiError(422, f"motion_bucket: is measured in {REFERENCE}; give one of the two", "motion_bucket")
        shape = made["height"], made["width"]
        made = {**made, "motion_bucket": await reader.bucket(source.reference, made["num_frames"], shape)}
    return {**made, "cut_away": request.cut_of(made, *size)}, Inputs(source.image)


async def edited(
    asked: VideoRequest, source: Source, served: Served, limits: Limits, reader: UploadReader
) -> tuple[Request, Inputs]:
    """Complete a request to give a video's motion to an image or, without an image, to another prompt.

    Defaults are those of `cinemo edit`; if only the prompt can change the video, the model's guidance_scale.
    """
    assert source.video is not None
    if asked.speed is not None:
        raise ApiError(422, "speed: does not apply to a video, which DDIM inverts; leave it out", "speed")
    usual: dict[str, Any] = {
        **request.EDITED,
        "num_inference_steps": min(served.card.inversion_steps, limits.max_steps),
    }
    if not source.image:
        usual["guidance_scale"] = served.card.guidance
    missing = {name: value for name, value in usual.items() if name not in asked.model_fields_set}
    made = await of_aspect(complete(asked.model_copy(update=missing), served, limits), source.video, reader)
    made = {**made, "video_digest": hashlib.sha256(source.video).hexdigest()}
    check_work(made, limits.max_work)
    size = made["height"], made["width"]
    if source.image:
        await reader.size(source.image, size)
    frames, bucket = await reader.clip(source.video, made["num_frames"], size)
    if asked.motion_bucket is None:
        made = {**made, "motion_bucket": bucket}
    shown = asked.source_prompt or (source.job.request["prompt"] if source.job is not None else asked.prompt)
    if shown != asked.prompt:
        made = {**made, "source_prompt": shown}
    return made, Inputs(source.image, frames)


async def extended(
    asked: VideoRequest, source: Source, served: Served, limits: Limits, reader: UploadReader
) -> tuple[Request, Inputs]:
    """Complete a request to continue a video from its last frame, by `seconds` or by one clip."""
    assert source.video is not None
    if source.image:
        raise ApiError(422, f"{IMAGE}: an extension begins at the video's last frame; leave it out", IMAGE)
    made = await of_aspect(complete(asked.model_copy(update={"seconds": None}), served, limits), source.video, reader)
    frames, own_fps = await reader.whole(source.video, (made["height"], made["width"]))
    fps = asked.fps or own_fps
    try:
        check_fps(fps, f".{asked.format}")
    except ValueError as error:
        raise ApiError(422, f"fps: {error}", "fps") from None
    clip = made["num_frames"] - 1  # each begins at the last frame of the one before
    more = clip if asked.seconds is None else max(1, round(asked.seconds * fps))
    clips = math.ceil(more / clip)
    if clips > MAX_CLIPS:
        raise ApiError(422, f"seconds: at most {MAX_CLIPS * clip / fps:.3g} can be added at once", "seconds")
    made = {**made, "video_digest": hashlib.sha256(source.video).hexdigest(), "extend": clips - 1}
    check_work(made, limits.max_work)
    total = played(len(frames) + more, asked.loop)
    return {**made, "fps": fps, "total_frames": total}, Inputs(b"", frames)


async def of_aspect(made: Request, video: bytes, reader: UploadReader) -> Request:
    """Choose the size nearest to the video's aspect for a request that leaves the size open. Raises ApiError."""
    return request.fitted(made, *await reader.shape(video)) if "sizes" in made else made
