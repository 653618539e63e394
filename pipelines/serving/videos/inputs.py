"""Inputs of a job, as the store keeps them: the uploaded image, or an image and the frames of a video."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Inputs(NamedTuple):
    """Inputs of a job."""

    image: bytes  # as uploaded; b"": the video's own first frame
    frames: np.ndarray | None = None  # of the video that is edited or extended: uint8 (N, H, W, 3)


def pack(inputs: Inputs) -> bytes:
    """Convert to what is stored: the image itself, or a compressed .npz."""
    if inputs.frames is None:
        return inputs.image
    buffer = io.BytesIO()
    np.savez_compressed(buffer, image=np.frombuffer(inputs.image, np.uint8), frames=inputs.frames)
    return buffer.getvalue()


def unpack(request: Mapping[str, Any], stored: bytes) -> Inputs:
    """Convert back what `pack` made for this request."""
    if "video_digest" not in request:
        return Inputs(stored)
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        return Inputs(arrays["image"].tobytes(), arrays["frames"])
