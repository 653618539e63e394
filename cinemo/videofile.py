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

from cinemo import animation
from cinemo.videotimes import FrameTimes, frame_times

# What a folder of videos is searched for; and animated WebP, but most files that end so are photos or thumbnails.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ogv"),
    *(".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".dv", ".gif", ".apng"),
)
ANIMATED_WEBP = ".webp"
MAX_FRAME_PIXELS = 8192 * 4608
MAX_FRAMES = 10_000_000  # four days at 30 frames a second
MAX_ANIMATION_PIXELS = 1 << 28  # of all frames of an animated picture, which is unpacked in memory: 1 GB at most
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own ones see no transparency

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
    decoder: Any
    times: FrameTimes

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a stored pixel to its height; what no display can have had in mind counts as square."""
        stored = Fraction(self.stream.sample_aspect_ratio or 1)
        return stored if Fraction(1, 4) <= stored <= 4 else Fraction(1)


class VideoInfo(NamedTuple):
    """What is known without decoding. Frames are those that are shown; frames a second are measured, on average.

    Width and height are as coded, before any rotation.
    """

    num_frames: int
    fps: float
    width: int
    height: int


def probe(source: Source) -> VideoInfo:
    """Frame count, frames per second and size (pixels), by timestamps and the container.

    source: a path or a seekable binary file object, which is read from its beginning and stays open.
    Raises VideoError.
    """
    with open_video(source) as video:
        return VideoInfo(video.times.count, float(video.times.rate), video.stream.width, video.stream.height)


@contextmanager
def open_video(source: Source) -> Iterator[OpenVideo]:
    """The container and its first video stream, with one decoding thread; closed on leaving. Raises VideoError.

    A file object is read from its beginning wherever it stands, and stays open.
    """
    name = name_of(source)
    with open_container(source, name, max_pixels=str(MAX_FRAME_PIXELS)) as container:
        if container.format.name not in animation.KINDS:
            yield prepare(source, name, container)
            return
    unpacked = unpack(source, name, container.format.name)
    with open_container(unpacked, name) as container:
        yield prepare(unpacked, name, container)


def prepare(source: Source, name: str, container: Any) -> OpenVideo:
    """An open container's video stream, checked, with its decoder and the times of its frames. Raises VideoError."""
    stream = choose_stream(container, name)
    check_size(source, stream, name)
    decoder = choose_decoder(stream)
    decoder.thread_count = 1  # the callers run one decoder a core
    decoder.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # frames may be larger than the header's
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all  # sound is not even read
    check_count(stream.frames, container, name)
    try:
        times = remembered(source, container, name, stream)
    except OSError as error:  # the file object's own: the video may be sound
        raise VideoError("unreadable", f"video {name} cannot be read ({error})") from error
    check_count(times.count, container, name)
    return OpenVideo(name, container, stream, decoder, times)


def remembered(source: Source, container: Any, name: str, stream: Any) -> FrameTimes:
    """The times of a stream's frames; those of a known file as they were, so that it is not read for each clip.

    Known by its name, and on disk by its time as well. Memory has no names.
    """
    if isinstance(source, str | os.PathLike):
        key: Any = (os.path.abspath(source), container.size, os.stat(source).st_mtime_ns)
    else:
        key = (name, container.size) if "://" in name or "#" in name else None
    if key not in _TIMES:
        if len(_TIMES) >= 16:
            _TIMES.clear()
        _TIMES[key] = frame_times(container, stream)
    return _TIMES[key] if key else _TIMES.pop(key)


_TIMES: dict[Any, FrameTimes] = {}


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
            file: Any = f"file:{os.path.abspath(source)}"  # a colon in its name makes no protocol of it
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
            sizes = [(other.width, other.height) for other in container.streams.video if other.index == stream.index]
            width, height = sizes[0] if sizes else (0, 0)
    if width * height > MAX_FRAME_PIXELS:
        raise VideoError("too_large", f"video {name} is {width} x {height}; at most 8192 x 4608 is taken")
    if not width or not height:
        raise VideoError("unreadable", f"video {name} has no frame size; its header is damaged or its size absurd")


def check_count(count: int, container: Any, name: str) -> None:
    """Raise VideoError for more frames than can be: no codec makes frames of less than a byte."""
    if count > MAX_FRAMES or 0 < container.size < count:
        raise VideoError(
            "too_large",
            f"video {name} claims {count:,} frames in {container.size:,} bytes; at most {MAX_FRAMES:,} are taken,"
            " and no more than it has bytes",
        )


def choose_decoder(stream: Any) -> Any:
    """The stream's decoder, or one that gives its transparency as well."""
    native = stream.codec_context
    codec = ALPHA_DECODERS.get(native.name)
    if codec not in av.codecs_available or stream.metadata.get("alpha_mode") != "1":
        return native
    return av.CodecContext.create(codec, "r")


def is_animated_webp(head: bytes) -> bool:
    """Whether a file is animated WebP, by its first 21 bytes."""
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 2)


def unpack(source: Source, name: str, kind: str) -> BinaryIO:
    """An animated picture as a video in memory. Raises VideoError where it does not move, is broken or too large."""
    if isinstance(source, str | os.PathLike):
        file: Any = os.fspath(source)
    else:
        file = source
        file.seek(0)
    try:
        count, width, height = animation.look(file)
        if count == 1:
            raise VideoError("no_video", f"{name} is a still image ({kind}), not a video")
        if width * height > MAX_FRAME_PIXELS or count * width * height > MAX_ANIMATION_PIXELS:
            raise VideoError("too_large", f"video {name} has {count} frames of {width} x {height}: too many for memory")
        return animation.to_matroska(file)
    except VideoError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise VideoError("corrupt", f"video {name} cannot be decoded ({error})") from error
