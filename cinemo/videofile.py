"""Video files: open one, or say in one sentence why it cannot be used.

Knows containers, streams and their faults. Knows nothing of which frames are wanted or what their pixels are.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av
from av.stream import Discard, Disposition

MAX_FRAME_PIXELS = 8192 * 4608
MAX_FRAMES = 10_000_000  # four days at 30 frames a second

Source = str | os.PathLike[str] | BinaryIO  # a path, or a seekable binary file object (object storage, a tar member)


class VideoError(ValueError):
    """A video that cannot be used.

    `reason` is one of missing, unreadable, no_video, unsupported, too_short, too_large, corrupt.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # two arguments, which Exception's own pickling would lose
        return (type(self), (self.reason, str(self)))


class OpenVideo(NamedTuple):
    """An open container and the stream in it that is the video."""

    name: str
    container: Any
    stream: Any
    num_frames: int
    rate: Fraction  # frames a second, on average


class VideoInfo(NamedTuple):
    """What the container says, without decoding. Width and height are as coded, before any rotation."""

    num_frames: int
    fps: float
    width: int
    height: int


def probe(source: Source) -> VideoInfo:
    """Read frame count, frames per second and size (pixels) from the container.

    source: a path or a seekable binary file object, which is read from its beginning and stays open.
    Raises VideoError.
    """
    with open_video(source) as video:
        return VideoInfo(video.num_frames, float(video.rate), video.stream.width, video.stream.height)


@contextmanager
def open_video(source: Source) -> Iterator[OpenVideo]:
    """The container and its first video stream, with one decoding thread; closed on leaving. Raises VideoError.

    A file object is read from its beginning wherever it stands, and stays open.
    """
    name = name_of(source)
    with open_container(source, name, max_pixels=str(MAX_FRAME_PIXELS)) as container:
        stream = choose_stream(container, name)
        check_size(source, stream, name)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        count = count_frames(container, stream, rate)
        # No codec makes frames of less than a byte, so such a header lies.
        if count > MAX_FRAMES or 0 < container.size < count:
            raise VideoError(
                "too_large",
                f"video {name} claims {count:,} frames in {container.size:,} bytes; at most {MAX_FRAMES:,} are taken,"
                " and no more than it has bytes",
            )
        stream.codec_context.thread_count = 1  # the callers run one decoder a core
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # frames may be larger than the header's
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all  # sound is not even read
        yield OpenVideo(name, container, stream, count, rate)


def name_of(source: Source) -> str:
    """How messages call the source: its path, or a file object's own name."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)  # an integer for a file without one
    return name if isinstance(name, str) and name else f"in a {type(source).__name__}"


def open_container(source: Source, name: str, **options: str) -> Any:
    """The opened container. options: FFmpeg's, for the decoder that looks at the first frames. Raises VideoError."""
    try:
        if isinstance(source, str | os.PathLike):
            file: Any = os.fspath(source)
        else:
            file = source
            file.seek(0)
        # A playlist names other files: whatever it names, nothing is fetched over a network.
        return av.open(file, metadata_errors="ignore", options={"protocol_whitelist": "file", **options})
    except FileNotFoundError:
        raise VideoError("missing", f"video {name} does not exist; check the path") from None
    except (av.FFmpegError, OSError) as error:
        raise VideoError("unreadable", f"video {name} cannot be opened ({error}); is it a video file?") from None


def choose_stream(container: Any, name: str) -> Any:
    """The first video stream that is moving pictures and can be decoded. Raises VideoError."""
    if container.format.name.endswith("_pipe") or container.format.name == "image2":  # jpeg_pipe, png_pipe, ...
        raise VideoError("no_video", f"{name} is a still image ({container.format.name}), not a video")
    streams = list(container.streams.video)
    if not streams:
        raise VideoError("no_video", f"{name} has no video stream")
    moving = [s for s in streams if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise VideoError("no_video", f"{name} has no video stream, only a cover picture")
    for stream in moving:
        if stream.codec_context is not None:
            return stream
    raise VideoError(
        "unsupported", f"video {name} uses a codec that this FFmpeg cannot decode; convert it, for example to H.264"
    )


def check_size(source: Source, stream: Any, name: str) -> None:
    """Raise VideoError unless frames have a size, and one that fits in memory."""
    width, height = stream.width, stream.height
    if not width or not height:  # some decoders forget the size when it is over the limit: ask without decoding
        with open_container(source, name, skip_frame="all") as container:
            width, height = container.streams[stream.index].width, container.streams[stream.index].height
    if width * height > MAX_FRAME_PIXELS:
        raise VideoError("too_large", f"video {name} is {width} x {height}; at most 8192 x 4608 is taken")
    if not width or not height:
        raise VideoError("unreadable", f"video {name} has no frame size; its header is damaged or its size absurd")


def count_frames(container: Any, stream: Any, rate: Fraction) -> int:
    """Frames by the container's count, or by its duration (webm and ts store no count)."""
    if stream.frames:
        return int(stream.frames)
    if stream.duration:
        return round(stream.duration * stream.time_base * rate)
    return round(Fraction(container.duration or 0, av.time_base) * rate)
