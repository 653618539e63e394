"""Sample clips from video files (and, from `videowrite`, write them).

Knows timestamps and pixels. Knows nothing of motion scores, latents or Ray. A clip is read by seeking to the keyframe
before its first frame, decoding to its last and resizing inside the decoder: no full-size RGB frame and no frame past
the clip's end is ever made, and in H.264 no frame that neither the clip nor another frame needs.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from cinemo.videofile import OpenVideo, Source, VideoError, VideoInfo, open_video, probe
from cinemo.videowrite import check_output, write_video

__all__ = [
    "SAMPLING_VERSION",
    "VIDEO_SUFFIXES",
    "VideoError",
    "VideoInfo",
    "check_output",
    "probe",
    "read_clip",
    "sample_clip",
    "sample_clips",
    "write_video",
]

SAMPLING_VERSION = "pts-cover-crop-v2"  # part of every clip id; change it when the same span would give other pixels
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".gif")


def read_clip(
    source: Source, start: int, interval: int, num_frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """A clip as sample_clip gives it, and its interval: less than asked for where the video is short.

    Raises as sample_clip.
    """
    longest = max(1, (probe(source).num_frames - 1 - start) // max(1, num_frames - 1))
    step = min(interval, longest)
    return sample_clip(source, start, step, num_frames, size), step


def sample_clip(
    source: Source, start: int, interval: int, num_frames: int = 16, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Frames start, start + interval, ... of a video, scaled to cover `size` and cut to its centre.

    source: a path or a seekable binary file object, which is read from its beginning and stays open.
    start, interval: in frames of the video at its average rate; frames are found by timestamp, so a variable frame rate
    gives the picture shown at that time. size: (H, W) pixels, or None for the video's own.
    Returns uint8 (num_frames, H, W, 3), RGB, upright, transparency laid over white. Raises VideoError (a ValueError)
    when the video is missing, unreadable, too short for the span, or corrupt within it; ValueError for a negative start
    or an interval below 1.
    """
    [clip] = sample_clips(source, [(start, interval)], num_frames, size)
    if isinstance(clip, VideoError):
        raise clip
    return clip


def sample_clips(
    source: Source,
    spans: Sequence[tuple[int, int]],
    num_frames: int = 16,
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray | VideoError]:
    """For every span (start, interval) what sample_clip returns, or its VideoError; the file is opened once.

    Raises VideoError where the fault is the whole video's, ValueError for a negative start or an interval below 1.
    """
    for start, interval in spans:
        if start < 0 or interval < 1 or num_frames < 1:
            raise ValueError(
                f"start {start}, interval {interval}, num_frames {num_frames}: need start >= 0, the others >= 1"
            )
    with open_video(source) as video:
        for start, interval in spans:
            try:
                yield read_span(video, start, interval, num_frames, size)
            except VideoError as error:
                yield error


def read_span(video: OpenVideo, start: int, interval: int, num_frames: int, size: tuple[int, int] | None) -> np.ndarray:
    """One span of an open video, as sample_clip. Raises VideoError."""
    name, stream = video.name, video.stream
    ticks = 1 / (video.rate * stream.time_base)  # timestamp units a frame
    origin = stream.start_time or 0
    targets = [origin + (start + interval * k) * ticks for k in range(num_frames)]
    try:
        clip = read_lean(video, targets, ticks, size)
        if clip is None:
            frames = pick_frames(decode_from(video, targets, ticks, None), targets, ticks)
            clip = list(render_all(frames, size))
    except av.FFmpegError as error:
        raise VideoError("corrupt", f"video {name} cannot be decoded from frame {start} on ({error})") from error
    except OSError as error:  # the file object's own: the video may be sound
        raise VideoError("unreadable", f"video {name} cannot be read from frame {start} on ({error})") from error
    if len(clip) < num_frames:
        at = start + interval * len(clip)
        if at < stream.frames:  # the container promises a frame that the decoder did not give
            raise VideoError("corrupt", f"video {name} is damaged: frame {at} of {stream.frames} cannot be decoded")
        raise VideoError("too_short", f"video {name} ends before frame {at}; take a smaller start or interval")
    return np.stack(clip)


def read_lean(
    video: OpenVideo, targets: list[Fraction], ticks: Fraction, size: tuple[int, int] | None
) -> list[np.ndarray] | None:
    """The pictures at `targets` from no more decoding than they need, or None where that cannot be sure of them.

    H.264 only: its packets say which frames no other frame refers to, in so many words. HEVC's do not (a frame of a
    higher temporal layer may refer to one marked so), and in other codecs few frames are so. Nor AVI, which does not
    store when a frame is shown.
    """
    if video.stream.codec_context.name != "h264" or video.container.format.name == "avi":
        return None
    seen: list[int] = []
    shown: list[int] = []
    clip: list[np.ndarray] = []
    frames = pick_frames(decode_from(video, targets, ticks, seen), targets, ticks)
    for picture in render_all(watch(frames, shown), size):
        clip.append(picture)
    # Any frame left out is one that was not wanted, if every picture is the one that the timestamps ask for. It is not
    # where a frame is damaged, a timestamp is absent or the video ends within the span.
    return clip if shown == [on_screen(seen, target, ticks) for target in targets] else None


def watch(frames: Iterable[Any], shown: list[int]) -> Iterator[Any]:
    """The frames themselves; their timestamps are put in `shown`."""
    for frame in frames:
        shown.append(frame.pts)
        yield frame


def on_screen(timestamps: list[int], target: Fraction, ticks: Fraction) -> int | None:
    """Which of the sorted timestamps is on screen at `target`: the rule of pick_frames, without frames."""
    exact = bisect_left(timestamps, target - ticks / 2)
    if exact < len(timestamps) and timestamps[exact] <= target + ticks / 2:
        return timestamps[exact]
    return timestamps[exact - 1] if exact else None


def decode_from(video: OpenVideo, targets: list[Fraction], ticks: Fraction, seen: list[int] | None) -> Iterator[Any]:
    """Decoded frames in display order, from a keyframe at or before the first target.

    With a list `seen`, frames that nobody needs are left out and the packets' timestamps put there, sorted.
    """
    container, stream, target = video.container, video.stream, targets[0]
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        yield from count_from_the_start(video, ticks)
        return
    second = 1 / stream.time_base
    begin = int((stream.start_time or 0) - 10 * second)  # the first packet is decoded before its frame is shown
    # An index may overshoot, and finds keyframes by decoding time, which is before the time they are shown: step back.
    for back in (0, 2, 8, 32, None):
        offset = begin if back is None else max(begin, int(target - back * second))
        seek(container, stream, offset)
        frames = decode(video, targets, ticks, seen)
        first = next(frames, None)
        early = first is not None and (first.pts is None or first.pts <= target + ticks / 2)
        if early or offset == begin:
            break
    if first is not None:
        yield first
    yield from frames


def seek(container: Any, stream: Any, offset: int) -> None:
    """To the keyframe at or before `offset`, or to the first one."""
    try:
        container.seek(offset, stream=stream, backward=True)
    except PermissionError:  # what AVI says to a time before its first frame
        container.seek(stream.start_time or 0, stream=stream, backward=True)


def count_from_the_start(video: OpenVideo, ticks: Fraction) -> Iterator[Any]:
    """Every frame, its timestamp made from its place: AVI stores no times, and FFmpeg guesses them amid B-frames."""
    stream = video.stream
    seek(video.container, stream, stream.start_time or 0)
    stream.codec_context.skip_frame = "DEFAULT"
    for place, frame in enumerate(video.container.decode(stream)):
        frame.pts = round((stream.start_time or 0) + place * ticks)
        yield frame


def decode(video: OpenVideo, targets: list[Fraction], ticks: Fraction, seen: list[int] | None) -> Iterator[Any]:
    """Decoded frames from where the container stands; `seen` as in decode_from."""
    context, packets = video.stream.codec_context, video.container.demux(video.stream)
    if seen is None:
        context.skip_frame = "DEFAULT"
        for packet in packets:
            yield from packet.decode()
        return
    seen.clear()
    for packet, wanted in mark_wanted(packets, targets, ticks, seen):
        context.skip_frame = "DEFAULT" if wanted else "NONREF"
        yield from packet.decode()
    yield from context.decode(None)  # what waits for its turn to be shown


def mark_wanted(
    packets: Iterable[Any], targets: list[Fraction], ticks: Fraction, seen: list[int]
) -> Iterator[tuple[Any, bool]]:
    """Packets up to the last that a target needs, each with whether its own frame is one that a target may show.

    Reads ahead only until that is known: packets come in decoding order, not in the order they are shown.
    """
    limits = [target + ticks / 2 for target in targets]  # past them a frame is no longer the target's
    waiting: deque[Any] = deque()
    clock = float("-inf")  # no packet to come is shown before this

    def verdict(packet: Any) -> bool | None:
        if packet.pts is None:
            return True
        at = bisect_left(limits, packet.pts)
        if at == len(limits):
            return False
        if packet.pts >= limits[at] - ticks:
            return True
        if bisect_right(seen, limits[at]) > bisect_right(seen, packet.pts):
            return False  # another frame comes between it and the target
        return True if clock > limits[at] else None

    for packet in packets:
        if packet.size:  # the demuxer's last one is empty
            waiting.append(packet)
        if packet.pts is not None:
            insort(seen, packet.pts)
        clock = float("inf") if packet.dts is None else packet.dts
        while waiting and (wanted := verdict(waiting[0])) is not None:
            yield waiting.popleft(), wanted
        if not waiting and clock > limits[-1]:
            return


def pick_frames(frames: Iterable[Any], targets: list[Fraction], ticks: Fraction) -> Iterator[Any]:
    """For every target time the frame on screen then; fewer than targets when the video ends or breaks before."""
    waiting = deque(targets)
    shown = None
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            continue
        # A frame is on screen until the next one: half a frame of slack takes in rounded timestamps.
        while shown is not None and waiting and frame.pts > waiting[0] + ticks / 2:
            waiting.popleft()
            yield shown
        shown = frame
        if waiting and abs(frame.pts - waiting[0]) <= ticks / 2:
            waiting.popleft()
            yield frame  # exact: no need to decode its successor
        if not waiting:
            return
    if shown is not None:
        end = shown.pts + max(ticks / 2, shown.duration or 0)
        while waiting and waiting.popleft() < end:
            yield shown


def render_all(frames: Iterable[Any], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    """Decoded frames as uint8 (H, W, 3): scaled by FFmpeg's scaler in this thread, cut, turned upright."""
    scaler, alpha_scaler = VideoReformatter(), VideoReformatter()  # kept for a clip: setting one up takes a while
    for frame in frames:
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        height, width = size if size is not None else (frame.height, frame.width)
        if size is not None and turns % 2:
            height, width = width, height
        scale = max(height / frame.height, width / frame.width)
        full_height = max(height, round(frame.height * scale))
        full_width = max(width, round(frame.width * scale))
        shape = {"width": full_width, "height": full_height, "interpolation": "BILINEAR", "threads": 1}
        rgb = scaler.reformat(frame, format="rgb24", **shape).to_ndarray()
        if frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components):
            alpha = alpha_scaler.reformat(frame, format="rgba", **shape).to_ndarray()[..., 3:]
            rgb = over_white(rgb, alpha)
        top, left = (full_height - height) // 2, (full_width - width) // 2
        yield np.ascontiguousarray(np.rot90(rgb[top : top + height, left : left + width], turns))


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) under uint8 (H, W, 1) opacity, on white: what image.py does with a photo."""
    mixed = rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return ((mixed + 127) // 255).astype(np.uint8)
