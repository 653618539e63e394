"""Video files: sample a clip from one, write one.

Knows containers, timestamps and pixels. Knows nothing of motion scores, latents or Ray. A clip is read by seeking to
the keyframe before its first frame, decoding to its last and resizing inside the decoder, so that no full-size RGB
frame and no frame past the clip's end is ever made.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

SAMPLING_VERSION = "pts-cover-crop-v1"  # part of every clip id; change it when the same span would give other pixels
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".gif")
MAX_FRAME_PIXELS = 8192 * 4608
CRF = 18  # visually lossless H.264


class VideoError(ValueError):
    """A video that cannot be used. `reason` is one of missing, unreadable, no_video, too_short, too_large, corrupt."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # two arguments, which Exception's own pickling would lose
        return (type(self), (self.reason, str(self)))


class VideoInfo(NamedTuple):
    """What the container says, without decoding. Width and height are as coded, before any rotation."""

    num_frames: int
    fps: float
    width: int
    height: int


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read frame count, frames per second and size (pixels) from the container. Raises VideoError."""
    with open_stream(path) as (container, stream):
        rate = frame_rate(stream)
        count = stream.frames
        if not count:  # webm and ts do not store it
            seconds = (
                stream.duration * stream.time_base
                if stream.duration
                else Fraction(container.duration or 0, av.time_base)
            )
            count = round(seconds * rate)
        return VideoInfo(int(count), float(rate), stream.width, stream.height)


def sample_clip(
    path: str | os.PathLike[str],
    start: int,
    interval: int,
    num_frames: int = 16,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Frames start, start + interval, ... of a video, scaled to cover `size` and cut to its centre.

    start, interval: in frames of the video at its average rate; frames are found by timestamp, so a variable frame rate
    gives the picture shown at that time. size: (H, W) pixels, or None for the video's own.
    Returns uint8 (num_frames, H, W, 3), RGB, upright. Raises VideoError (a ValueError) when the video is missing,
    unreadable, too short for the span, or corrupt within it; ValueError for a negative start or an interval below 1.
    """
    if start < 0 or interval < 1 or num_frames < 1:
        raise ValueError(
            f"start {start}, interval {interval}, num_frames {num_frames}: need start >= 0, the others >= 1"
        )
    with open_stream(path) as (container, stream):
        ticks = 1 / (frame_rate(stream) * stream.time_base)  # timestamp units a frame
        origin = stream.start_time or 0
        targets = [origin + (start + interval * k) * ticks for k in range(num_frames)]
        try:
            frames = pick_frames(decode_from(container, stream, targets[0], ticks), targets, ticks)
            clip = [render(frame, size) for frame in frames]
        except (av.FFmpegError, OSError) as error:
            raise VideoError("corrupt", f"video {path} cannot be decoded from frame {start} on ({error})") from error
        if len(clip) < num_frames:
            at = start + interval * len(clip)
            if at < stream.frames:  # the container promises a frame that the decoder did not give
                raise VideoError("corrupt", f"video {path} is damaged: frame {at} of {stream.frames} cannot be decoded")
            raise VideoError("too_short", f"video {path} ends before frame {at}; take a smaller start or interval")
    return np.stack(clip)


@contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, with one decoding thread; closed on leaving. Raises VideoError."""
    path = os.fspath(path)
    try:
        container = av.open(path, metadata_errors="ignore")
    except FileNotFoundError:
        raise VideoError("missing", f"video {path} does not exist; check the path") from None
    except (av.FFmpegError, OSError) as error:
        raise VideoError("unreadable", f"video {path} cannot be opened ({error}); is it a video file?") from None
    with container:
        streams = [s for s in container.streams.video if s.codec_context is not None]
        if not streams:
            raise VideoError("no_video", f"{path} has no video stream")
        stream = streams[0]
        if stream.width * stream.height > MAX_FRAME_PIXELS:
            raise VideoError(
                "too_large", f"video {path} is {stream.width} x {stream.height}; at most 8192 x 4608 is taken"
            )
        if not stream.width or not stream.height:
            raise VideoError("unreadable", f"video {path} has no frame size; its header is damaged")
        stream.codec_context.thread_count = 1  # the callers run one decoder a core
        yield container, stream


def frame_rate(stream: Any) -> Fraction:
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def decode_from(container: Any, stream: Any, target: Fraction, ticks: Fraction) -> Iterator[Any]:
    """Decoded frames in display order, from the keyframe at or before `target`."""
    container.seek(max(0, int(target)), stream=stream, backward=True)
    frames = container.decode(stream)
    first = next(frames, None)
    if first is None or (first.pts is not None and first.pts > target + ticks / 2):
        container.seek(stream.start_time or 0, stream=stream)  # an index that overshoots: start from the beginning
        first, frames = None, container.decode(stream)
    if first is not None:
        yield first
    yield from frames


def pick_frames(frames: Iterator[Any], targets: list[Fraction], ticks: Fraction) -> list[Any]:
    """For every target time the frame on screen then; fewer than targets when the video ends or breaks before."""
    picked: list[Any] = []
    shown = None
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            continue
        # A frame is on screen until the next one: half a frame of slack takes in rounded timestamps.
        while shown is not None and len(picked) < len(targets) and frame.pts > targets[len(picked)] + ticks / 2:
            picked.append(shown)
        shown = frame
        if len(picked) < len(targets) and abs(frame.pts - targets[len(picked)]) <= ticks / 2:
            picked.append(frame)  # exact: no need to decode its successor
        if len(picked) == len(targets):
            break
    if shown is not None:
        end = shown.pts + max(ticks / 2, shown.duration or 0)
        while len(picked) < len(targets) and targets[len(picked)] < end:
            picked.append(shown)
    return picked


def render(frame: Any, size: tuple[int, int] | None) -> np.ndarray:
    """One decoded frame as uint8 (H, W, 3): scaled by the decoder's own scaler, cut, turned upright."""
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    height, width = size if size is not None else (frame.height, frame.width)
    if size is not None and turns % 2:
        height, width = width, height
    scale = max(height / frame.height, width / frame.width)
    full_height = max(height, round(frame.height * scale))
    full_width = max(width, round(frame.width * scale))
    rgb = frame.reformat(width=full_width, height=full_height, format="rgb24", interpolation="BILINEAR").to_ndarray()
    top, left = (full_height - height) // 2, (full_width - width) // 2
    return np.ascontiguousarray(np.rot90(rgb[top : top + height, left : left + width], turns))


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
    """The path, if write_video can write there; so that a caller learns it before hours of work. Raises ValueError."""
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
