"""Prepare one row for the model: read, identify, decode and fit its image, and its source video if it has one.

Plain functions from row to row (records.STATE as dictionaries). A fault of one file is a reject row, never an
exception; a fault of the storage raises StorageError. Untrusted files are opened through `run`, which calls a function
here or in a child process.
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
from cinemo.sidecar import Request
from cinemo.video import VideoError, load_clip
from pipelines.animate import request
from pipelines.animate.records import animation_id, reject
from pipelines.core import isolation
from pipelines.core.isolation import Run
from pipelines.core.output import Reason
from pipelines.core.patience import StorageError
from pipelines.sources import images, media

Row = dict[str, Any]
INTERVAL = 3  # between frames taken from a source video, smaller if it is short, as in `cinemo edit`


@functools.cache
def in_sandbox(timeout: float) -> Run:
    """A `run` that calls a child process, one per process; hangs and crashes there become an ImageError here.

    timeout: seconds for one call.
    """
    return isolation.guard(warm_up, timeout, "--image-timeout", ImageError)


def warm_up() -> None:
    """Load what preparing an image needs: seconds on a new node, not charged to the first image."""
    keep_freed_memory()
    fit_pixels(np.zeros((8, 8, 3), np.uint8), 8, 8)


class Photo(NamedTuple):
    """A fitted image, and facts about it."""

    digest: str  # SHA-256 of its bytes, hexadecimal
    request: Request  # with a size chosen for the image if that was open
    pixels: np.ndarray  # float32 (3, height, width) in [-1, 1]
    cut_away: float  # share of the image that is cut away
    seconds: float


def load(uri: str, asked: Request, edited: bool = False) -> Photo:
    """Read an image, and fit it to a request.

    edited: the image is a video's first frame, and must have its aspect. Raises ImageError.
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
    """Read a source video: SHA-256 of its bytes (hexadecimal), frames, and the seconds it took. Raises VideoError.

    The frames are uint8 (num_frames, height, width, 3), taken from its beginning.
    """
    began = time.perf_counter()
    with media.open_video(uri) as video:
        try:
            frames = load_clip(video, 0, INTERVAL, num_frames, (height, width), shorten=True).frames
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
    """SHA-256, hexadecimal, of a local file, or of a file object from its beginning."""
    if isinstance(video, str):
        with open(video, "rb") as file:
            return digest_of(file)
    video.seek(0)
    return hashlib.file_digest(cast(io.BufferedReader, video), "sha256").hexdigest()


def prepare(task: Mapping[str, Any], made_with: Mapping[str, str], run: Run) -> Row:
    """Prepare a row of TASK: adds id, pixels, clip and the seconds they took; or returns its reject row."""
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
                made = {**made, "motion_bucket": motion_bucket(motion_score(clip))}
    except (ImageError, VideoError) as error:
        return reject(row, stage, Reason(error.reason), sentence(error, video if stage == "video" else None))
    except StorageError:
        raise
    except Exception as error:
        return reject(row, stage, Reason.INTERNAL, f"{type(error).__name__}: {error}")
    return {
        **row,
        "request": json.dumps(made),
        "id": animation_id(photo.digest, made, made_with, row.get("video_digest")),
        "facts": json.dumps({"cut_away": photo.cut_away, "timings": {"prepare_seconds": round(seconds, 4)}}),
    }


def sentence(error: Exception, video: str | None) -> str:
    """Message of an error, with the name of the video if it lacks it."""
    return str(error) if video is None or video in str(error) else f"video {video}: {error}"
