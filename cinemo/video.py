"""Sample clips from video files; writing them (videowrite.py) is re-exported.

To read a clip, seek to the keyframe before its first frame, decode to its last (videodecode.py), and resize inside the
decoder. No full-size RGB frame and no frame past the clip's end is ever made; in H.264, frames that neither the clip
nor another frame needs are skipped too. Pixels are converted in videopixels.py, timestamps read in videotimes.py.
"""

import errno
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np

from cinemo import hdr
from cinemo.videodecode import decode_from, on_screen, pick_frames
from cinemo.videofile import (
    ANIMATED_WEBP,
    VIDEO_SUFFIXES,
    OpenVideo,
    Source,
    VideoError,
    VideoInfo,
    is_animated_webp,
    open_video,
    probe,
)
from cinemo.videopixels import INTERLACED, is_turned, render_all
from cinemo.videowrite import check_output, write_video

__all__ = [
    "ANIMATED_WEBP",
    "SAMPLING_VERSION",
    "VIDEO_SUFFIXES",
    "SampledClip",
    "VideoError",
    "VideoInfo",
    "VideoTraits",
    "check_output",
    "is_animated_webp",
    "load_clip",
    "probe",
    "sample_clip",
    "shown_size",
    "write_video",
]

SAMPLING_VERSION = "pts-cover-crop-v2"  # part of every clip id; change it when the same span would give other pixels


class VideoTraits(NamedTuple):
    """Properties of a video's storage that affect how it is shown, read from its frames and timestamps."""

    fps: float  # frames a second, on average
    variable_rate: bool  # frames are shown for unequal times
    sample_aspect_ratio: float  # width of a stored pixel to its height; pictures are scaled to square pixels
    transfer: str | None  # "pq" or "hlg": high dynamic range, which is tone-mapped
    interlaced: bool  # frames hold two fields, of which the upper one is shown

    def describe(self) -> str:
        """For people: "25 fps", and what is unusual."""
        words = [f"{self.fps:.4g} fps"]
        words += ["variable"] * self.variable_rate + ["interlaced"] * self.interlaced
        words += [f"HDR ({self.transfer.upper()})"] if self.transfer else []
        words += [f"pixels {self.sample_aspect_ratio:.3g}:1"] if self.sample_aspect_ratio != 1 else []
        return ", ".join(words)


class SampledClip(NamedTuple):
    """A clip, its interval, and the traits of its video."""

    frames: np.ndarray  # uint8 (N, H, W, 3), RGB
    interval: int  # between its frames, in frames of the video
    traits: VideoTraits


def load_clip(
    source: Source, start: int, interval: int, num_frames: int, size: tuple[int, int] | None, shorten: bool = False
) -> SampledClip:
    """Sample a clip like sample_clip, with its interval and the traits of its video.

    shorten: in a video too short for the interval, use the longest that fits. Raises like sample_clip.
    """
    check_span(start, interval, num_frames)
    with open_video(source) as video:
        longest = max(1, (video.times.count - 1 - start) // max(1, num_frames - 1))
        interval = min(interval, longest) if shorten else interval
        found: set[str] = set()
        frames = read_span(video, start, interval, num_frames, size, found)
        transfer = next((one for one in (hdr.PQ, hdr.HLG) if one in found), None)
        varies = video.times.uneven is not None
        traits = VideoTraits(float(video.times.rate), varies, float(video.pixel_aspect), transfer, INTERLACED in found)
        return SampledClip(frames, interval, traits)


def sample_clip(
    source: Source, start: int, interval: int, num_frames: int = 16, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read frames start, start + interval, ... of a video, scaled to cover `size` and cropped to its centre.

    source: a path or a seekable binary file object, which is read from its beginning and stays open.
    start, interval: in frames of the video, in display order. Where the frame rate varies, a clip's frames are not
    evenly spaced in time. size: (H, W) pixels, or None for the size at which the video is shown.
    Returns uint8 (num_frames, H, W, 3), RGB, upright, with square pixels, deinterlaced, high dynamic range tone-mapped,
    transparency laid over white. Raises VideoError (a ValueError) when the video is missing, unreadable, too short for
    the span, or corrupt within it; ValueError for a negative start or an interval below 1.
    """
    return load_clip(source, start, interval, num_frames, size).frames


def shown_size(source: Source) -> tuple[int, int]:
    """Size (H, W) in pixels at which a video is shown: upright, with square pixels. Raises VideoError.

    Decodes the first frame, because only frames tell the rotation; if it is damaged, the video counts as upright.
    """
    with open_video(source) as video:
        try:
            frame = next(decode_from(video, [video.times.at(0)], None), None)
        except av.FFmpegError:
            frame = None
        except OSError as error:  # raised by the file object: the video itself may be sound
            raise VideoError("unreadable", f"video {video.name} cannot be read ({error})") from error
        height, width = video.stream.height, max(1, round(video.stream.width * video.pixel_aspect))
        return (width, height) if is_turned(frame) else (height, width)


def check_span(start: int, interval: int, num_frames: int) -> None:
    """Raise ValueError for a span that is invalid in every video."""
    if start < 0 or interval < 1 or num_frames < 1:
        raise ValueError(
            f"start {start}, interval {interval}, num_frames {num_frames}: need start >= 0, the others >= 1"
        )


def read_span(
    video: OpenVideo,
    start: int,
    interval: int,
    num_frames: int,
    size: tuple[int, int] | None,
    found: set[str] | None = None,
) -> np.ndarray:
    """Read one span of an open video, like sample_clip. found: see render_all. Raises VideoError."""
    name, times = video.name, video.times
    wanted = range(start, start + interval * num_frames, interval)
    if wanted[-1] >= times.count:
        at = next(frame for frame in wanted if frame >= times.count)
        raise VideoError("too_short", f"video {name} ends before frame {at}; take a smaller start or interval")
    targets = [times.at(frame) for frame in wanted]
    try:
        clip = read_lean(video, targets, size, found)
        if clip is None:
            frames = pick_frames(decode_from(video, targets, None), targets, times.ticks)
            clip = list(render_all(frames, size, video.pixel_aspect, found))
    except av.FFmpegError as error:
        if error.errno == errno.ENOTSUP:  # the scaler's answer to matrices such as YCgCo and ICtCp
            remedy = "has colours of a kind that this FFmpeg cannot convert; convert it, for example to BT.709"
            raise VideoError("unsupported", f"video {name} {remedy}") from error
        raise VideoError("corrupt", f"video {name} cannot be decoded from frame {start} on ({error})") from error
    except OSError as error:  # raised by the file object: the video itself may be sound
        raise VideoError("unreadable", f"video {name} cannot be read from frame {start} on ({error})") from error
    if len(clip) < num_frames:
        at = start + interval * len(clip)
        raise VideoError("corrupt", f"video {name} is damaged: frame {at} of {times.count} cannot be decoded")
    return np.stack(clip)


def read_lean(
    video: OpenVideo, targets: list[Fraction], size: tuple[int, int] | None, found: set[str] | None
) -> list[np.ndarray] | None:
    """Read the pictures at `targets`, skipping frames that they do not need; None where that could give wrong pictures.

    H.264 only: its packets mark the frames that no other frame refers to. In HEVC a frame of a higher temporal layer
    may refer to one so marked, and in other codecs few frames are. AVI is excluded, because it does not store when a
    frame is shown.
    """
    if video.decoder.name != "h264" or video.container.format.name == "avi" or video.times.by_place:
        return None
    ticks = video.times.ticks
    seen: list[int] = []
    shown: list[int] = []
    clip: list[np.ndarray] = []
    frames = pick_frames(decode_from(video, targets, seen), targets, ticks)
    for picture in render_all(watch(frames, shown), size, video.pixel_aspect, found):
        clip.append(picture)
    # If every picture is the one that the timestamps call for, only unneeded frames were skipped. They differ where a
    # frame is damaged, a timestamp is missing, or the video ends within the span.
    return clip if shown == [on_screen(seen, target, ticks) for target in targets] else None


def watch(frames: Iterable[Any], shown: list[int]) -> Iterator[Any]:
    """Pass frames through, appending their timestamps to `shown`."""
    for frame in frames:
        shown.append(frame.pts)
        yield frame
