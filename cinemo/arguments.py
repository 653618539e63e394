"""Check the arguments of CinemoPipeline: single values or lists, sizes, lengths and settings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from cinemo.card import DEFAULT_SIZE, ModelCard
from cinemo.motion import motion_id

MAX_FRAMES = 64


def batch_size(*arguments: Any) -> int:
    """Common length of the arguments that are lists or batched tensors, or 1. Raises ValueError if lengths differ."""
    lengths = {len(a) for a in arguments if isinstance(a, (list, tuple)) or (isinstance(a, Tensor) and a.ndim == 5)}
    if 0 in lengths or len(lengths) > 1:
        raise ValueError(
            f"lists of lengths {sorted(lengths)} were given; image, prompt, motion_bucket and seed need one length"
        )
    return lengths.pop() if lengths else 1


def spread(name: str, value: Any, batch: int) -> list[Any]:
    """A list with one value per sample: `value` itself if it is a list, else repeated. Raises ValueError for None."""
    if value is None:
        raise ValueError(f"{name} is missing")
    return list(value) if isinstance(value, (list, tuple)) else [value] * batch


def motion_ids(bucket: Any, raw: Any, card: ModelCard, batch: int) -> list[float]:
    """Motion id that the U-Net gets for each sample: `raw`, else that of `bucket`, else that of the card's bucket."""
    if raw is not None:
        return [float(value) for value in spread("raw_motion_id", raw, batch)]
    buckets = spread("motion_bucket", card.bucket if bucket is None else bucket, batch)
    return [float(motion_id(value, card.motion)) for value in buckets]


def check_size(
    height: int | None, width: int | None, factor: int, trained: Sequence[tuple[int, int]] | None
) -> tuple[int, int]:
    """Height and width to animate at, in pixels. Raises ValueError for a size that the model cannot take."""
    default = trained[0] if trained else DEFAULT_SIZE
    size = (height or default[0], width or default[1])
    if trained and size not in [tuple(allowed) for allowed in trained]:
        allowed = ", ".join(f"{h} x {w}" for h, w in trained)
        raise ValueError(f"height x width {size[0]} x {size[1]} was not trained by this model; it takes {allowed}")
    smallest = min(8 * factor, max(64, 2 * factor))
    if size[0] % factor or size[1] % factor or not smallest <= min(size) <= max(size) <= 4096:
        raise ValueError(
            f"height x width {size[0]} x {size[1]} does not fit; "
            f"both must be multiples of {factor} from {smallest} to 4096"
        )
    return size


def check_length(num_frames: int, trained: Sequence[int] | None) -> None:
    if trained and num_frames not in trained:
        raise ValueError(
            f"num_frames {num_frames} was not trained by this model; it takes {', '.join(map(str, trained))}"
        )
    if not 2 <= num_frames <= MAX_FRAMES:
        raise ValueError(f"num_frames {num_frames} is outside 2..{MAX_FRAMES}")


def check_settings(steps: int, dct_timestep: int, output_type: str, chunk: int, scheduler: Any) -> None:
    last = scheduler.config.num_train_timesteps
    if not 1 <= steps < last:
        raise ValueError(f"num_inference_steps {steps} is outside 1..{last - 1}; the paper uses 50")
    if not 0 <= dct_timestep < last:
        raise ValueError(f"dct_timestep {dct_timestep} is outside 0..{last - 1}; the paper's code uses 975")
    if output_type not in ("np", "pil", "latent"):
        raise ValueError(f"output_type {output_type!r} is unknown; use 'np', 'pil' or 'latent'")
    if chunk < 1:
        raise ValueError(f"decode_chunk_size {chunk} must be at least 1; 14 is the official one")


def check_guidance(rescale: float, interval: tuple[float, float]) -> None:
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"guidance_rescale {rescale} is outside 0..1; 0 is off, 0.7 is usual")
    if not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(f"guidance_interval {interval[0]}..{interval[1]} is not within 0..1; 0..1 guides every step")


def check_video(frames: Any) -> np.ndarray:
    """The video to invert as an array, uint8 (N, H, W, 3) with N >= 2. Raises ValueError for anything else."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise ValueError(f"video_frames are {frames.dtype} {frames.shape}; pass uint8 (N, H, W, 3) with N >= 2 frames")
    return frames
