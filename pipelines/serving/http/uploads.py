"""Read uploaded images and videos: decode them in child processes, two at a time, with bounded memory and time.

A file of some kB may decode to a gigabyte, and decoders have crashed on hostile files. An ingress that ran out of
memory would bring down its node.
"""

import asyncio
import functools
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cinemo.image import check_aspect, read_image
from cinemo.motion import motion_bucket, motion_score
from cinemo.video import VideoError, load_clip, probe, shown_size
from pipelines.core.isolation import ATTEMPTS, DeadChildError, Sandbox
from pipelines.serving.http import dialect
from pipelines.serving.http.errors import ApiError

AT_ONCE = 2  # files of one process; others wait
TIMEOUT_S = 60.0
INTERVAL = 3  # between frames taken from a video, smaller if it is short, as in `cinemo edit`
MAX_FRAME_BYTES = 64 << 20  # of all frames of a video that is extended, at its size in the result
_BYTES_A_PIXEL, _REST = 26, 512 << 20  # most that reading takes (cinemo/image.py); for the file and libraries
_VIDEO_MEMORY = 3 << 30  # a decoder of the largest frames keeps some of them
_TYPES = {"image": "JPEG, PNG or WebP", "video": "MP4 with H.264"}


class UploadReader:
    """A few child processes that decode uploads. Use it from one event loop.

    Every method raises ApiError (422), naming the field, for a file that cannot be read within limits. The code is
    decoder_away if the child process died at every attempt: because of the file, or because memory ran out.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self._threads, self._own = ThreadPoolExecutor(AT_ONCE, "upload"), threading.local()

    async def size(self, image: bytes, aspect: tuple[int, int] | None = None) -> tuple[int, int]:
        """Height and width of an image in pixels. aspect: (H, W) of a video whose edited first frame it is."""
        tall, wide = await self._run(dialect.IMAGE, size_of, image, self.max_pixels, aspect)
        return tall, wide

    async def shape(self, video: bytes) -> tuple[int, int]:
        """Height and width at which a video is shown, in pixels."""
        tall, wide = await self._run(dialect.VIDEO, shape_of, video)
        return tall, wide

    async def clip(self, video: bytes, num_frames: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
        """Frames from a video's beginning, fitted to size (H, W), uint8 (num_frames, H, W, 3); and their bucket."""
        frames, bucket = await self._run(dialect.VIDEO, clip_of, video, num_frames, size)
        return frames, bucket

    async def bucket(self, video: bytes, num_frames: int, size: tuple[int, int]) -> int:
        """Measure the motion bucket of a video in num_frames frames from its beginning, fitted to size (H, W)."""
        _, bucket = await self._run(dialect.REFERENCE, clip_of, video, num_frames, size)
        return bucket

    async def whole(self, video: bytes, size: tuple[int, int]) -> tuple[np.ndarray, float]:
        """All frames of a video, fitted to size (H, W), uint8 (N, H, W, 3), and frames a second."""
        frames, fps = await self._run(dialect.VIDEO, all_of, video, size)
        return frames, fps

    async def _run(self, field: str, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, field, function, *arguments)

    def _call(self, field: str, function: Callable[..., Any], *arguments: Any) -> Any:
        kind = "image" if field == dialect.IMAGE else "video"
        memory = _BYTES_A_PIXEL * self.max_pixels + _REST if kind == "image" else _VIDEO_MEMORY
        sandbox = self._own.__dict__.setdefault(kind, Sandbox(memory=memory))
        code = f"invalid_{kind}"
        for _ in range(ATTEMPTS):
            try:
                return sandbox.call(function, *arguments, timeout=TIMEOUT_S)
            except ValueError as error:
                raise ApiError(422, f"{field}: {error}", field, code) from None
            except (MemoryError, TimeoutError) as error:
                why = str(error) or "it takes too much memory"
                break
            except DeadChildError as error:
                why = str(error)
        else:
            code = "decoder_away"
        message = f"{kind} cannot be decoded ({why}); save it as {_TYPES[kind]}"
        raise ApiError(422, f"{field}: {message}", field, code)


@functools.cache
def checker(max_pixels: int) -> UploadReader:
    """Return the reader of this process, which its services share."""
    return UploadReader(max_pixels)


class Upload(io.BytesIO):
    """A file in memory, with a name for messages."""

    name = "upload"


def size_of(image: bytes, max_pixels: int, aspect: tuple[int, int] | None) -> tuple[int, int]:
    """Decode an image; returns its height and width. Raises ImageError, also for another aspect than that."""
    picture = read_image(image, max_pixels)
    if aspect is not None:
        check_aspect(picture, *aspect)
    return picture.shape[0], picture.shape[1]


def shape_of(video: bytes) -> tuple[int, int]:
    """Height and width at which a video is shown, in pixels. Raises VideoError."""
    return shown_size(Upload(video))


def clip_of(video: bytes, num_frames: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """Decode frames from a video's beginning, uint8 (num_frames, H, W, 3), and measure their motion bucket.

    Raises VideoError.
    """
    frames = load_clip(Upload(video), 0, INTERVAL, num_frames, size, shorten=True).frames
    return frames, motion_bucket(motion_score(frames))


def all_of(video: bytes, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Decode all frames of a video: (uint8 (N, H, W, 3), frames a second). Raises VideoError, also for too many."""
    count, most = probe(Upload(video)).num_frames, MAX_FRAME_BYTES // (3 * size[0] * size[1])
    if count > most:
        raise VideoError("too_large", f"the video has {count} frames, and at most {most} can be extended; send its end")
    clip = load_clip(Upload(video), 0, 1, count, size)
    return clip.frames, clip.traits.fps
