"""Decode from a video the frames that are shown at given times, and as few others as its codec allows.

H.264 frames that no other frame refers to are skipped, unless they are wanted.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

from cinemo.videofile import OpenVideo
from cinemo.videotimes import packets_of


def on_screen(timestamps: list[int], target: Fraction, ticks: Fraction) -> int | None:
    """Which of the sorted timestamps is on screen at `target`: the rule of pick_frames, without frames."""
    exact = bisect_left(timestamps, target - ticks / 2)
    if exact < len(timestamps) and timestamps[exact] <= target + ticks / 2:
        return timestamps[exact]
    return timestamps[exact - 1] if exact else None


def decode_from(video: OpenVideo, targets: list[Fraction], seen: list[int] | None) -> Iterator[Any]:
    """Decoded frames in display order, from a keyframe at or before the first target.

    With a list `seen`, frames that nobody needs are left out and the packets' timestamps put there, sorted.
    """
    stream, target, ticks = video.stream, targets[0], video.times.ticks
    if video.times.by_place:
        yield from count_from_the_start(video)
        return
    second = 1 / stream.time_base
    begin = before(video)
    # An index may overshoot, and finds keyframes by decoding time, which is before the time they are shown: step back.
    for back in (0, 2, 8, 32, None):
        offset = begin if back is None else max(begin, int(target - back * second))
        seek(video, offset)
        frames = decode(video, targets, seen)
        first = next(frames, None)
        early = first is not None and (first.pts is None or first.pts <= target + ticks / 2)
        if early or offset == begin:
            break
    if first is not None:
        yield first
    yield from frames


def before(video: OpenVideo) -> int:
    """A timestamp before that of the first packet, which is decoded before its frame is shown."""
    return int(video.times.origin - 10 / video.stream.time_base)


def seek(video: OpenVideo, offset: int) -> None:
    """To the keyframe at or before `offset`, or to the first one."""
    container, stream = video.container, video.stream
    try:
        container.seek(offset, stream=stream, backward=True)
    except PermissionError:  # what AVI says to a time before its first frame
        container.seek(stream.start_time or 0, stream=stream, backward=True)
    if video.decoder is not stream.codec_context:  # which the container has told
        video.decoder.flush_buffers()


def count_from_the_start(video: OpenVideo) -> Iterator[Any]:
    """Every frame, its timestamp made from its place, for files whose timestamps are missing or wrong."""
    seek(video, before(video))
    video.decoder.skip_frame = "DEFAULT"
    for place, frame in enumerate(decode(video, [], None)):
        frame.pts = round(video.times.at(place))
        yield frame


def decode(video: OpenVideo, targets: list[Fraction], seen: list[int] | None) -> Iterator[Any]:
    """Decoded frames from where the container stands; `seen` as in decode_from."""
    decoder, packets = video.decoder, packets_of(video.container, video.stream)
    if seen is None:
        decoder.skip_frame = "DEFAULT"
        for packet in packets:
            yield from decoder.decode(packet)
        return
    seen.clear()
    for packet, wanted in mark_wanted(packets, targets, video.times.ticks, seen):
        decoder.skip_frame = "DEFAULT" if wanted else "NONREF"
        yield from decoder.decode(packet)
    yield from decoder.decode(None)  # what waits for its turn to be shown


def mark_wanted(
    packets: Iterable[Any], targets: list[Fraction], ticks: Fraction, seen: list[int]
) -> Iterator[tuple[Any, bool]]:
    """Packets up to the last that a target needs, each with whether its own frame is one that a target may show.

    Reads ahead only until that is known: packets come in decoding order, not in the order they are shown.
    """
    limits = [target + ticks / 2 for target in targets]  # a frame shown later than this is not the target's
    waiting: deque[Any] = deque()
    clock = float("-inf")  # no packet to come is shown before this

    def verdict(packet: Any) -> bool | None:
        if packet.pts is None:
            return True
        if packet.is_discard:
            return False  # an edit list hides it
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
        if packet.pts is not None and not packet.is_discard:
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
