"""Encode a finished video as the bytes of its files, and measure it; for the service and the animate job alike."""

import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

import cinemo
from cinemo import provenance
from cinemo.motion import motion_bucket, motion_score
from cinemo.video import sample_clip, write_video

SPRITES = 4  # columns of the spritesheet, or more if it would be higher than a JPEG can be
MOST_PIXELS = 65_500  # of a JPEG's side, for libjpeg


def video(frames: np.ndarray, fps: float, ending: str = ".mp4") -> bytes:
    """Encode frames, uint8 (N, H, W, 3), as .mp4, .webm, .gif or .webp. Raises ValueError like write_video."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"video{ending}"
        write_video(path, frames, fps)
        return path.read_bytes()


def read(data: bytes, num_frames: int, ending: str = ".mp4") -> np.ndarray:
    """Decode the frames of such a file: uint8 (N, H, W, 3)."""
    if ending in (".mp4", ".webm"):
        return sample_clip(io.BytesIO(data), 0, 1, num_frames)
    with Image.open(io.BytesIO(data)) as picture:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])


def thumbnail(frame: np.ndarray, width: int | None = None) -> bytes:
    """Encode a frame, uint8 (H, W, 3), as WebP, scaled down to `width` pixels if it is wider."""
    picture = Image.fromarray(frame)
    if width is not None and picture.width > width:
        picture.thumbnail((width, picture.height))
    return encoded(picture, "WEBP")


def spritesheet(frames: np.ndarray) -> bytes:
    """Lay out all frames from left to right and top to bottom, without margins, as JPEG."""
    count, height, width, _ = frames.shape
    columns = max(SPRITES, -(-count // (MOST_PIXELS // height)))
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height))
    for place, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (place % columns * width, place // columns * height))
    return encoded(sheet, "JPEG")


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Encode a picture. kind: Pillow's name of the format. Raises ValueError if it cannot."""
    buffer = io.BytesIO()
    try:
        picture.save(buffer, format=kind, quality=85, xmp=provenance.packet())
    except OSError as error:
        if error.errno is None:  # of Pillow's encoder: it fails each time, unlike a full disk
            raise ValueError(f"a picture of {picture.width} x {picture.height} pixels: {error}") from error
        raise
    return buffer.getvalue()


def measured(frames: np.ndarray) -> dict[str, Any]:
    """Measured motion: motion_score (Eq. 2) and motion_bucket."""
    score = motion_score(frames)
    return {"motion_score": round(score, 6), "motion_bucket": motion_bucket(score)}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the packages that a video depends on."""
    import diffusers
    import torch

    return {"cinemo": cinemo.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
