"""What happens to one row before the model sees it: its image is read, identified, decoded and fitted; its video too.

Plain functions from row to row (records.STATE as dictionaries). Knows images, source videos and ids. Knows nothing of
Ray, models or other rows. A fault of one file is a reject row, never an exception; whatever touches a file of a
stranger goes through `run`, which may be a plain call or one into a process of its own.
"""

import functools
import hashlib
import io
import json
import time
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from cinemo.image import ImageError, check_aspect, fit_pixels, read_image
from cinemo.memory import keep_freed_memory
from cinemo.motion import motion_bucket, motion_score
from cinemo.video import VideoError, read_clip
from pipelines.animate import request
from pipelines.animate.records import animation_id, reject
from pipelines.core import isolation
from pipelines.core.isolation import Run
from pipelines.core.output import Reason
from pipelines.sources import images, media

Row = dict[str, Any]
INTERVAL = 3  # between the frames that are taken of a source video, less where it is short: as `cinemo edit`


@functools.cache
def in_sandbox(timeout: float) -> Run:
    """A `run` with one child process a process: what hangs or crashes there is an ImageError here.

    timeout: seconds for one call.
    """
    return isolation.guard(warm_up, timeout, "--image-timeout", ImageError)


def warm_up() -> None:
    """Load what preparing an image needs: seconds on a new node, and not the first image's fault."""
    keep_freed_memory()
    fit_pixels(np.zeros((8, 8, 3), np.uint8), 8, 8)


class Photo(NamedTuple):
    """An image that was read and fitted, and what was found out about it."""

    digest: str  # sha256 of its bytes, hex
    request: dict[str, Any]  # with the size that suits it, where that was open
    pixels: np.ndarray  # float32 (3, height, width) in [-1, 1]
    cut_away: float  # share of the image
    seconds: float


def load(uri: str, asked: dict[str, Any], edited: bool = False) -> Photo:
    """Read an image, and fit it as a request says.

    edited: it is the first frame of a video, and has its aspect. Raises ImageError.
    """
    began = time.perf_counter()
    data = images.read(uri)
    try:
        image = read_image(data)
        size = image.shape[:2]
        made = request.fitted(asked, *size)
        if edited:
            check_aspect(image, made["height"], made["width"])
    except ImageError as error:
        raise ImageError(error.reason, str(error).replace("image", f"image {uri}", 1)) from None
    fit = made.get("fit", "crop")
    pixels = fit_pixels(image, made["height"], made["width"], edited, fit)[0].contiguous().numpy()
    digest = hashlib.sha256(data).hexdigest()
    return Photo(digest, made, pixels, request.cut_of(made, *size), time.perf_counter() - began)


def load_video(uri: str, num_frames: int, height: int, width: int) -> tuple[str, np.ndarray, float]:
    """The digest of a video's bytes (sha256, hex); its first frames, uint8 (num_frames, height, width, 3); seconds.

    Raises VideoError.
    """
    began = time.perf_counter()
    with media.open_video(uri) as video:
        try:
            frames, _ = read_clip(video, 0, INTERVAL, num_frames, (height, width))
            digest = digest_of(video)
        except VideoError as error:
            if error.reason != "too_short":
                raise
            message = f"video {uri} is too short: {num_frames} frames are taken of it; give a longer one"
            raise VideoError("too_short", message) from None
        except OSError as error:
            raise VideoError("unreadable", f"video {uri} cannot be read: {error}") from error
    return digest, frames, time.perf_counter() - began


def digest_of(video: str | BinaryIO) -> str:
    """sha256, hex, of a local file, or of a file object from its beginning."""
    if isinstance(video, str):
        with open(video, "rb") as file:
            return digest_of(file)
    video.seek(0)
    return hashlib.file_digest(cast(io.BufferedReader, video), "sha256").hexdigest()


def prepare(task: Mapping[str, Any], made_with: Mapping[str, str], run: Run) -> Row:
    """A row of TASK -> a row with its id, pixels, clip, and the seconds that they took; or its reject row."""
    row = dict(task)
    if row["reason"]:
        return reject(row, "catalog", Reason(row["reason"]), row["message"])
    video, stage = row["source_video"], "image"
    try:
        photo = run(load, row["image"], json.loads(row["request"]), video is not None)
        made, seconds = photo.request, photo.seconds
        row |= {"image_digest": photo.digest, "pixels": photo.pixels.tobytes()}
        if video is not None:
            stage = "video"
            video_digest, clip, more = run(load_video, video, made["num_frames"], made["height"], made["width"])
            row |= {"video_digest": video_digest, "clip": clip.tobytes()}
            seconds += more
            if made["motion_bucket"] is None:
                made["motion_bucket"] = motion_bucket(motion_score(clip))
    except (ImageError, VideoError) as error:
        return reject(row, stage, Reason(error.reason), sentence(error, video if stage == "video" else None))
    except Exception as error:
        return reject(row, stage, Reason.INTERNAL, f"{type(error).__name__}: {error}")
    return {
        **row,
        "request": json.dumps(made),
        "id": animation_id(photo.digest, made, made_with, row.get("video_digest")),
        "facts": json.dumps({"cut_away": photo.cut_away, "timings": {"prepare_seconds": round(seconds, 4)}}),
    }


def sentence(error: Exception, video: str | None) -> str:
    """What an error says, with the name of the video that it is about."""
    return str(error) if video is None or video in str(error) else f"video {video}: {error}"
