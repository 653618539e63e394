"""Number and timestamps of a video's frames, from a file's index or its packets.

The header is only a hint: its frame rate is used where the timestamps agree with it, its counts and durations never.
Frames that an edit list hides, and those before the first keyframe, which no decoder shows, are not counted.
"""

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np

EVEN = 0.25  # tolerance of even timestamps, in frames; containers round them, to milliseconds at worst


@dataclass(frozen=True, eq=False)
class FrameTimes:
    """Timestamps of the frames in display order, in units of the stream's time base.

    Frame k is the k-th that a player shows, counted from 0.
    """

    count: int
    rate: Fraction  # frames a second, on average
    origin: int  # timestamp of the first frame
    ticks: Fraction  # from a frame to the next; 1 where the frame rate varies
    uneven: np.ndarray | None = None  # timestamp of every frame, int64, sorted; only where the frame rate varies
    by_place: bool = False  # decoders give wrong or no timestamps: frames must be counted

    def at(self, frame: int) -> Fraction:
        """The timestamp of a frame, 0 <= frame < count."""
        return self.origin + frame * self.ticks if self.uneven is None else Fraction(int(self.uneven[frame]))


def frame_times(container: Any, stream: Any) -> FrameTimes:
    """Find the times of a stream's frames: from the index if it suffices, else by reading all packets.

    The container must be at its beginning; its position afterwards is undefined. Other streams should be discarded. A
    truncated file has the frames before its end. Raises OSError when a file object cannot be read.
    """
    return from_index(container, stream) or from_packets(container, stream)


def from_index(container: Any, stream: Any) -> FrameTimes | None:
    """Times from the index of MP4 or AVI, without reading a frame; None if it does not say when each is shown."""
    entries = stream.index_entries
    if container.format.name == "avi":
        if not 0 < stream.frames <= len(entries):
            return None  # the writer was killed before it wrote the index, or the file is cut off
        reordered = guesses_times(container, stream)
        shown = sum(1 for entry in entries if entry.size)
        if shown == 0 or (shown < len(entries) and not reordered):  # an empty entry repeats the frame before it
            return None
        even = evenly(stream, shown, header_rate(stream), stream.start_time or 0)
        return replace(even, by_place=reordered)
    if not container.format.name.startswith("mov") or not stream.frames or len(entries) < 2:
        return None
    stamps = np.fromiter((entry.timestamp for entry in entries), np.int64, len(entries))
    length = (stamps[-1] - stamps[0]) * len(stamps) / (len(stamps) - 1)
    if (
        length <= 0
        or any(entry.is_discard for entry in entries)
        or (stream.duration or 0) > length + 2 * length / len(stamps)
    ):
        return None  # an edit list hides frames, fragments follow that the index does not list yet, or it is damaged
    # The index has decoding times: where these are even, the display times are too.
    rate = even_rate(stamps, stream)
    return None if rate is None else evenly(stream, len(stamps), rate, stream.start_time or 0)


def guesses_times(container: Any, stream: Any) -> bool:
    """Whether FFmpeg may guess times wrongly: AVI stores none, and display and decoding order may differ."""
    decoder = stream.codec_context
    return container.format.name == "avi" and (bool(decoder.has_b_frames) or decoder.name in ("h264", "hevc"))


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream from the container's position on, and an empty one at the end."""
    with contextlib.suppress(IndexError):  # PyAV raises it at the end of a file in which streams appeared on the way
        yield from container.demux(stream)


def from_packets(container: Any, stream: Any) -> FrameTimes:
    """Times from the timestamps of all packets."""
    times, begin, clock, unsure = array("q"), None, None, guesses_times(container, stream)
    earliest = None  # first timestamp shown; what would precede the first keyframe needs frames that do not exist
    with contextlib.suppress(av.FFmpegError):  # a truncated file: keep what was read
        for packet in packets_of(container, stream):
            if not packet.size:
                continue
            if begin is None and packet.is_keyframe:
                begin, earliest = len(times), packet.pts
            if packet.is_discard:
                continue
            # No timestamps, as in a raw stream; or time runs backward, as in recordings that were joined.
            unsure |= packet.pts is None or (clock is not None and packet.dts is not None and packet.dts < clock)
            clock = packet.dts if packet.dts is not None else clock
            times.append(packet.pts or 0)
    stamps = np.array(times, np.int64)[begin or 0 :]
    if not unsure:
        stamps = np.unique(stamps if earliest is None else stamps[stamps >= earliest])
    if unsure or not len(stamps):
        even = evenly(stream, len(stamps), header_rate(stream), stream.start_time or 0)
        return replace(even, by_place=True)
    rate = even_rate(stamps, stream)
    if rate is not None:
        return evenly(stream, len(stamps), rate, int(stamps[0]))
    return FrameTimes(len(stamps), measured_rate(stamps, stream), int(stamps[0]), Fraction(1), stamps)


def evenly(stream: Any, count: int, rate: Fraction, origin: int) -> FrameTimes:
    """Times of `count` frames at an even rate. origin: timestamp of the first."""
    return FrameTimes(count, rate, origin, 1 / (rate * stream.time_base))


def even_rate(stamps: np.ndarray, stream: Any) -> Fraction | None:
    """The frame rate of sorted timestamps (int64): the header's or the measured one; None if they are uneven."""
    rates = [header_rate(stream)] if len(stamps) < 2 else [header_rate(stream), measured_rate(stamps, stream)]
    seconds = (stamps - stamps[0]) * float(stream.time_base)
    for rate in rates:
        if np.abs(seconds * float(rate) - np.arange(len(stamps))).max() <= EVEN:
            return rate
    return None


def header_rate(stream: Any) -> Fraction:
    """Frames a second according to the header; 25 if it gives none."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def measured_rate(stamps: np.ndarray, stream: Any) -> Fraction:
    """Frames a second between the first and the last of at least two sorted timestamps."""
    return Fraction(len(stamps) - 1) / (int(stamps[-1] - stamps[0]) * Fraction(stream.time_base))
