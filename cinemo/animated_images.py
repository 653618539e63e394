"""Animated pictures (WebP, PNG) as a video that FFmpeg reads: it decodes none of WebP, and cannot seek in PNG."""

import io
import itertools
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image, ImageSequence

KINDS = ("webp_pipe", "apng")  # as FFmpeg calls them
FORMATS = ("WEBP", "PNG")  # as Pillow calls them; its other readers are not tried
# Milliseconds. Browsers show a frame for USUAL_DELAY if its delay is 0 to NO_DELAY, as many programs write it.
NO_DELAY, USUAL_DELAY = 10, 100


def look(source: str | BinaryIO) -> tuple[int, int, int]:
    """Read the number of frames, and their width and height in pixels, from the header. Raises Pillow's errors."""
    with Image.open(source, formats=FORMATS) as picture:
        return getattr(picture, "n_frames", 1) - is_first_hidden(picture), *picture.size


def is_first_hidden(picture: Any) -> bool:
    """Whether the first picture of a PNG is only for programs that show no animations; Pillow counts it as a frame."""
    return bool(getattr(picture, "default_image", False))


def to_matroska(source: str | BinaryIO) -> io.BytesIO:
    """Every frame without loss (FFV1), with its transparency and at its own time. Raises Pillow's errors."""
    made = io.BytesIO()
    milliseconds = Fraction(1, 1000)
    with Image.open(source, formats=FORMATS) as picture, av.open(made, "w", format="matroska") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height = picture.size
        stream.pix_fmt, stream.codec_context.time_base = "bgra", milliseconds
        clock = 0.0
        for shown in itertools.islice(ImageSequence.Iterator(picture), int(is_first_hidden(picture)), None):
            rgba = av.VideoFrame.from_ndarray(np.asarray(shown.convert("RGBA")), format="rgba")
            frame = rgba.reformat(format="bgra")
            frame.pts, frame.time_base = round(clock), milliseconds
            container.mux(stream.encode(frame))
            delay = shown.info.get("duration", 0)
            clock += delay if delay > NO_DELAY else USUAL_DELAY
        container.mux(stream.encode())
    made.seek(0)
    return made
