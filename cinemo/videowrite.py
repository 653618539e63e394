"""Write frames as a video file."""

import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

CRF = 18  # visually lossless H.264


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float = 8) -> None:
    """Write frames as .mp4 (H.264, plays while loading), .gif or .webp, by the path's ending.

    frames: uint8 (N, H, W, 3), RGB; an odd height or width gets one repeated row or column in mp4. The file appears
    complete or not at all. Raises ValueError for other arrays, endings, or an fps outside 1..240.
    """
    path = check_output(path, fps)
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; pass uint8 (N, H, W, 3) with N >= 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix.lower(), dir=path.parent)
    os.close(handle)
    try:
        WRITERS[path.suffix.lower()](aside, frames, fps)
        os.chmod(aside, 0o644)  # mkstemp makes it private
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], fps: float) -> Path:
    """Return the path if write_video can write there, else raise ValueError: call it before hours of work."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"output {path} is a directory; name a file in it, such as {path / 'out.mp4'}")
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"output {path} ends in {path.suffix or 'nothing'}; use {', '.join(WRITERS)}")
    if not 1 <= fps <= 240:
        raise ValueError(f"fps {fps} is outside 1..240")
    return path


def write_mp4(path: str, frames: np.ndarray, fps: float) -> None:
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(CRF)}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_animation(path: str, frames: np.ndarray, fps: float) -> None:
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


WRITERS = {".mp4": write_mp4, ".gif": write_animation, ".webp": write_animation}
