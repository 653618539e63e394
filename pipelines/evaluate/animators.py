"""A MODEL of the evaluation -> a function that animates an image: Cinemo, diffusers' other pipelines, finished videos.

Steps and guidance are each pipeline's defaults unless the job's flags set them.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cinemo import lora
from cinemo.errors import first_line
from cinemo.video import ANIMATED_WEBP, VIDEO_SUFFIXES, VideoError, probe, sample_clip
from pipelines.core import models, storage
from pipelines.evaluate.config import EvaluateConfig, scheme
from pipelines.sources import images


class AnimationRequest(NamedTuple):
    """One animation to make. image: uint8 (H, W, 3), already at the size of the frames."""

    name: str  # of the case
    image: np.ndarray
    prompt: str
    motion_bucket: int
    seed: int
    num_frames: int


FINISHED = ((ANIMATED_WEBP,), VIDEO_SUFFIXES)  # endings of finished videos; of one name, the last kind is taken
Animator = Callable[[AnimationRequest, Mapping[str, Any]], np.ndarray]  # -> uint8 (N, H, W, 3)


def load(model: str, config: EvaluateConfig, device: str) -> Animator:
    """Load the animator of a MODEL (see job.placed). Raises ValueError when it cannot be loaded."""
    kind = scheme(model)
    if kind == "cinemo":
        return cinemo(model, config, device)
    place = model[len(kind) + 1 :]
    if kind == "videos":
        return finished(place)
    return baseline(kind, place, config, device)


def cinemo(model: str, config: EvaluateConfig, device: str) -> Animator:
    """Load a Cinemo model; settings without a flag are those of its card."""
    import torch

    from cinemo import CinemoPipeline
    from cinemo.memory import keep_freed_memory

    keep_freed_memory()
    pipe = CinemoPipeline.from_pretrained(models.resolve(model), getattr(torch, config.precision), device)
    pipe.set_progress_bar_config(disable=True)
    loras = [lora.parse_option(text) for text in config.lora]
    pipe.load_adapters([(models.resolve_lora(place), weight) for place, weight in loras])
    steps = config.num_inference_steps or pipe.card.steps
    guidance = pipe.card.guidance if config.guidance_scale is None else config.guidance_scale

    def animate(request: AnimationRequest, varied: Mapping[str, Any]) -> np.ndarray:
        settings = {"num_inference_steps": steps, "guidance_scale": guidance, "scheduler": config.scheduler, **varied}
        init, scale = settings.pop("init", "dct"), settings.pop("lora", 1.0)
        pipe.set_adapters(list(pipe.loras), [weight * scale for _, weight in loras])
        if init == "none":
            settings["dct_init"] = False
        else:
            settings["dct_transform"] = init
        height, width = request.image.shape[:2]
        return pipe(
            request.image, request.prompt, motion_bucket=request.motion_bucket, num_frames=request.num_frames,
            height=height, width=width, seed=request.seed, **settings,
        ).frames[0]  # fmt: skip

    return animate


def baseline(kind: str, place: str, config: EvaluateConfig, device: str) -> Animator:
    """Load one of diffusers' image-to-video pipelines, from a directory or the hub. Raises ValueError."""
    import torch

    try:
        pipe = load_pipeline(kind, place, getattr(torch, config.precision)).to(device)
    except Exception as error:  # errors of the hub, safetensors or json
        raise ValueError(f"{kind}:{place} cannot be loaded by diffusers: {first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    overrides: dict[str, Any] = {"num_inference_steps": config.num_inference_steps}
    if kind != "svd":
        overrides["guidance_scale"] = config.guidance_scale
    elif config.guidance_scale is not None:
        overrides["max_guidance_scale"] = config.guidance_scale
    overrides = {name: value for name, value in overrides.items() if value is not None}

    def animate(request: AnimationRequest, varied: Mapping[str, Any]) -> np.ndarray:
        height, width = request.image.shape[:2]
        with torch.random.fork_rng():
            torch.manual_seed(request.seed)  # some pipelines use the global state despite their generator
            out = pipe(
                image=Image.fromarray(request.image),
                height=height,
                width=width,
                generator=torch.Generator().manual_seed(request.seed),
                output_type="np",
                **ARGUMENTS[kind](request),
                **overrides,
            ).frames[0]
        frames = (np.asarray(out)[: request.num_frames].clip(0, 1) * 255).round().astype(np.uint8)
        return fitted(frames, request)

    return animate


def load_pipeline(kind: str, place: str, dtype: Any) -> Any:
    """Load a pipeline of diffusers from a directory or the hub; PIA also from BASE+ADAPTER, as it is published."""
    import diffusers

    base, _, adapter = place.partition("+") if kind == "pia" else (place, "", "")
    parts = {"motion_adapter": diffusers.MotionAdapter.from_pretrained(adapter, torch_dtype=dtype)} if adapter else {}
    pipe = getattr(diffusers, PIPELINES[kind]).from_pretrained(base, torch_dtype=dtype, **parts)
    if kind == "i2vgen-xl" and not hasattr(pipe.text_encoder, "text_model"):
        # The pipeline looks for the text model where transformers before 5 had it.
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    return pipe


PIPELINES = {
    "svd": "StableVideoDiffusionPipeline",
    "i2vgen-xl": "I2VGenXLPipeline",
    "pia": "PIAPipeline",
    "cogvideox-i2v": "CogVideoXImageToVideoPipeline",
}
# Further arguments of each pipeline, besides image, size, seed and the job's settings. SVD takes no prompt, and its
# motion bucket, which has another scale, stays at its default. CogVideoX makes 4 k + 1 frames: surplus ones are cut.
ARGUMENTS: dict[str, Callable[[AnimationRequest], dict[str, Any]]] = {
    "svd": lambda request: {"num_frames": request.num_frames, "decode_chunk_size": 8},
    "i2vgen-xl": lambda request: {"prompt": request.prompt, "num_frames": request.num_frames},
    "pia": lambda request: {"prompt": request.prompt, "num_frames": request.num_frames},
    "cogvideox-i2v": lambda request: {
        "prompt": request.prompt,
        "num_frames": -(-(request.num_frames - 1) // 4) * 4 + 1,
    },
}


def version(model: str) -> str:
    """Identify the videos of a MODEL without a fingerprint: by its name and, for videos:PLACE, its files' stamps."""
    if scheme(model) != "videos":
        return model
    files = storage.list_files(model.partition(":")[2], sum(FINISHED, ()))
    listed = "\n".join(map(" ".join, zip(files, images.stamps(files), strict=True)))
    return f"{model}\n{hashlib.sha256(listed.encode()).hexdigest()}"


def finished(place: str) -> Animator:
    """Use videos of any origin below a folder or URI, named like the cases; frames are sampled evenly from each."""

    @cache
    def files() -> dict[str, str]:
        # A .webp beside a video of its name is the video's thumbnail.
        return {Path(uri).stem: uri for kinds in FINISHED for uri in storage.list_files(place, tuple(kinds))}

    def animate(request: AnimationRequest, varied: Mapping[str, Any]) -> np.ndarray:
        uri = files().get(request.name)
        if uri is None:
            raise VideoError("missing", f"there is no video {request.name} in {place}")
        video: Any = Path(uri) if storage.is_local(uri) else io.BytesIO(storage.read(uri) or b"")
        interval = max(1, (probe(video).num_frames - 1) // (request.num_frames - 1))
        return fitted(sample_clip(video, 0, interval, request.num_frames, request.image.shape[:2]), request)

    return animate


def fitted(frames: np.ndarray, request: AnimationRequest) -> np.ndarray:
    """Resize frames to the image's size. Raises ValueError if there are too few: metrics compare equal lengths."""
    if len(frames) < request.num_frames:
        raise ValueError(f"{len(frames)} frames were made, {request.num_frames} are compared; lower --num-frames")
    size = request.image.shape[1], request.image.shape[0]
    if frames.shape[1:3] == request.image.shape[:2]:
        return frames
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in frames])
