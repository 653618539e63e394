"""Types of the JSON that is stored for an animation: its request, and the sidecar beside its video.

Rows of a catalog's output and jobs of the service contain requests. The id of a video is a hash that includes its
request, so names and meanings never change. Requests are read-only: to change one, make a copy.
"""

from typing import Any, NotRequired

from typing_extensions import ReadOnly, TypedDict  # ReadOnly is in typing from Python 3.13 on


class Lora(TypedDict):
    """A LoRA adapter that a request names."""

    name: ReadOnly[str]  # path, hub id or models:/...; in the service, the adapter's name there
    weight: ReadOnly[float]
    fingerprint: ReadOnly[str]  # of its file


class LoraFacts(TypedDict):
    """A LoRA adapter that acted when a video was made."""

    path: ReadOnly[str]  # path, hub id or models:/...; in the service, the adapter's name there
    fingerprint: ReadOnly[str]
    weight: ReadOnly[float]
    lineage: ReadOnly[dict[str, Any]]  # of its card


class Request(TypedDict):
    """A complete request (pipelines/animate/request.py completes it): arguments of CinemoPipeline, and fps."""

    prompt: ReadOnly[str]
    negative_prompt: ReadOnly[str]
    width: ReadOnly[int]
    height: ReadOnly[int]
    num_frames: ReadOnly[int]
    fps: ReadOnly[float]
    seed: ReadOnly[int]
    num_inference_steps: ReadOnly[int]
    guidance_scale: ReadOnly[float]
    motion_bucket: ReadOnly[int]  # null in a task whose bucket will be measured in the source video
    dct_init: ReadOnly[bool]
    dct_cutoff: ReadOnly[float]
    dct_timestep: ReadOnly[int]
    fit: ReadOnly[NotRequired[str]]  # "pad"; without it the image is cropped
    sizes: ReadOnly[NotRequired[list[tuple[int, int]]]]  # choices (H, W) until the image is known
    speed: ReadOnly[NotRequired[str]]  # name of a preset, which sets the steps and the next three
    scheduler: ReadOnly[NotRequired[str]]
    guidance_interval: ReadOnly[NotRequired[tuple[float, float]]]
    reuse: ReadOnly[NotRequired[int]]  # CinemoPipeline's cache_interval, under its older name
    lora: ReadOnly[NotRequired[list[Lora]]]  # adapters that act
    cut_away: ReadOnly[NotRequired[float]]  # in the service: share of the image that is in no frame
    extend: ReadOnly[NotRequired[int]]  # further clips; this and the fields down to request_id: only in the service
    loop: ReadOnly[NotRequired[bool]]
    format: ReadOnly[NotRequired[str]]  # ending of the video's file, if it is not an mp4
    preview: ReadOnly[NotRequired[bool]]
    total_frames: ReadOnly[NotRequired[int]]  # if they are not num_frames
    source_prompt: ReadOnly[NotRequired[str]]  # of the video that is edited, if it is not the prompt
    source_video_id: ReadOnly[NotRequired[str]]  # of the video that is edited or extended, if the service made it
    request_id: ReadOnly[NotRequired[str]]  # of the HTTP request, as in the access log
    image: ReadOnly[NotRequired[str]]  # the next three only in sidecars of the animate job
    image_digest: ReadOnly[NotRequired[str]]
    video: ReadOnly[NotRequired[str]]
    video_digest: ReadOnly[NotRequired[str]]  # of the video that is edited or, with extend, extended


class Sidecar(TypedDict):
    """JSON beside a video: the model, the settings and the measurements of its animation."""

    id: ReadOnly[str]
    model: ReadOnly[str]
    model_fingerprint: ReadOnly[str]
    model_lineage: ReadOnly[NotRequired[dict[str, Any]]]
    loras: ReadOnly[NotRequired[list[LoraFacts]]]  # adapters that acted
    request: ReadOnly[Request]
    versions: ReadOnly[dict[str, str]]  # of packages
    batch: ReadOnly[int]  # videos made at once
    timings: ReadOnly[dict[str, float]]
    motion_score: ReadOnly[float]  # measured, as is the bucket
    motion_bucket: ReadOnly[int]
    precision: ReadOnly[NotRequired[str]]  # this one and the next two: only of the animate job
    psnr_first_frame: ReadOnly[NotRequired[float]]
    cut_away: ReadOnly[NotRequired[float]]
    attempt: ReadOnly[NotRequired[int]]  # only of the service
    file: ReadOnly[NotRequired[dict[str, Any]]]  # only of the animate job: bytes and sha256 of the video's file
