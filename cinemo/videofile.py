"""Open a video file, or raise an error that says in one sentence why it cannot be used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.stream import Discard, Disposition

from cinemo import animated_images
from cinemo.mistaken import HEAD, lacks_index, mistaken
from cinemo.videotimes import FrameTimes, frame_times

# Suffixes of the files that count as videos in a folder. WebP is not among them: most WebP files are photos, so only
# animated ones are taken.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ogv"),
    *(".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".dv", ".gif", ".apng"),
)
ANIMATED_WEBP = ".webp"
MAX_FRAME_PIXELS = 8192 * 4608
MAX_FRAMES = 10_000_000  # four days at 30 frames a second
MAX_ANIMATION_PIXELS = 1 << 28  # all frames of an animated picture, which is unpacked in memory: 1 GB at most
# FFmpeg's names of the formats that are read. Playlists (hls, concat, dash) are not among them, because they open other
# files. Audio files and still pictures are, so that the error can say that they are no videos.
FORMATS = (
    "mov,matroska,avi,asf,flv,ogg,mpeg,mpegts,mpegvideo,mxf,dv,gif,apng,webp_pipe,m4v,h264,hevc,av1,obu,ivf,vc1,mjpeg,"
    "rm,nut,wtv,gxf,yuv4mpegpipe,image2,jpeg_pipe,png_pipe,bmp_pipe,tiff_pipe,gif_pipe,jpegxl_pipe,j2k_pipe,"
    "mp3,wav,w64,flac,aac,ac3,aiff,au,amr,caf"
)
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's native decoders ignore transparency

Source = str | os.PathLike[str] | BinaryIO  # a path, or a seekable binary file object (object storage, a tar member)


class VideoError(ValueError):
    """A video that cannot be used.

    `reason` is one of missing, unreadable, no_video, unsupported, too_short, too_large, corrupt.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # Exception's own pickling would lose the second argument
        return (type(self), (self.reason, str(self)))


class OpenVideo(NamedTuple):
    """An open container and its video stream."""

    name: str
    container: Any
    stream: Any
    decoder: Any
    times: FrameTimes

    @property
    def pixel_aspect(self) -> Fraction:
        """Width of a stored pixel to its height; implausible ratios, outside 1/4..4, count as square."""
        stored = Fraction(self.stream.sample_aspect_ratio or 1)
        return stored if Fraction(1, 4) <= stored <= 4 else Fraction(1)


class VideoInfo(NamedTuple):
    """Facts known without decoding: the number of frames shown, their measured average rate, their size and times.

    Width and height are as coded, before any rotation.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    seconds: np.ndarray | None = None  # from the first frame to each, float64; only where the frame rate varies


def probe(source: Source) -> VideoInfo:
    """Read frame count, frames per second, size (pixels) and uneven times from the timestamps and the container.

    source: a path or a seekable binary file object, which is read from its beginning and stays open.
    Raises VideoError.
    """
    with open_video(source) as video:
        times, stream = video.times, video.stream
        seconds = None if times.uneven is None else (times.uneven - times.origin) * float(stream.time_base)
        return VideoInfo(times.count, float(times.rate), stream.width, stream.height, seconds)


@contextmanager
def open_video(source: Source) -> Iterator[OpenVideo]:
    """Open a container and its first video stream, with one decoding thread; closed on leaving. Raises VideoError.

    A file object is read from its beginning, whatever its position, and stays open.
    """
    name = name_of(source)
    with open_container(source, name, max_pixels=str(MAX_FRAME_PIXELS)) as container:
        if container.format.name not in animated_images.KINDS:
            yield prepare(source, name, container)
            return
    unpacked = unpack(source, name, container.format.name)
    with open_container(unpacked, name) as container:
        yield prepare(unpacked, name, container)


def prepare(source: Source, name: str, container: Any) -> OpenVideo:
    """Check an open container's video stream; find its decoder and the times of its frames. Raises VideoError."""
    stream = choose_stream(container, name)
    check_size(source, stream, name)
    decoder = choose_decoder(stream)
    decoder.thread_count = 1  # callers run one decoder per core
    decoder.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # frames may be larger than the header says
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all  # sound is not even read
    check_count(stream.frames, container, name)
    try:
        times = remembered(source, container, name, stream)
    except OSError as error:  # raised by the file object: the video itself may be sound
        raise VideoError("unreadable", f"video {name} cannot be read ({error})") from error
    check_count(times.count, container, name)
    return OpenVideo(name, container, stream, decoder, times)


def remembered(source: Source, container: Any, name: str, stream: Any) -> FrameTimes:
    """The times of a stream's frames, cached so that a file is not read again for each of its clips.

    The cache key is path, size and modification time on disk, name and size elsewhere. Unnamed file objects are not
    cached.
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
    """Name of the source in messages: its path, or a file object's own name."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)  # an integer for a file without one
    return name if isinstance(name, str) and name else f"in a {type(source).__name__}"


def open_container(source: Source, name: str, **options: str) -> Any:
    """Open a container. options: FFmpeg's, for the decoder that probes the first frames. Raises VideoError."""
    try:
        if isinstance(source, str | os.PathLike):
            file: Any = f"file:{os.path.abspath(source)}"  # so that a colon in the name is not taken for a protocol
        else:
            file = source
            file.seek(0)
        # Whatever a file contains, FFmpeg opens no other one, here or over a network.
        limits = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        return av.open(file, metadata_errors="ignore", options={**limits, **options})
    except FileNotFoundError:
        raise VideoError("missing", f"video {name} does not exist; check the path") from None
    except (av.FFmpegError, OSError) as error:
        why = what_is(source) or f"cannot be opened ({error}); is it a video file?"
        raise VideoError("unreadable", f"video {name} {why}") from None


def what_is(source: Source) -> str | None:
    """Name a file that FFmpeg cannot open, as in "is a web page"; None if it is unknown or cannot be read."""
    try:
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                return what_is(file)
        source.seek(0)
        head, size = source.read(HEAD), source.seek(0, os.SEEK_END)
    except OSError:
        return None
    if lacks_index(head, size):
        return "is an MP4 without its index (moov): it was cut off, or is still being written"
    return mistaken(head, size)


def choose_stream(container: Any, name: str) -> Any:
    """Find the first video stream that is not a still picture and can be decoded. Raises VideoError."""
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
    """Raise VideoError unless frames have a size, and it is within MAX_FRAME_PIXELS."""
    width, height = stream.width, stream.height
    if not width or not height:  # some decoders drop a size over the limit: read it without decoding
        with open_container(source, name, skip_frame="all") as container:
            sizes = [(other.width, other.height) for other in container.streams.video if other.index == stream.index]
            width, height = sizes[0] if sizes else (0, 0)
    if width * height > MAX_FRAME_PIXELS:
        raise VideoError("too_large", f"video {name} is {width} x {height}; at most 8192 x 4608 is taken")
    if not width or not height:
        raise VideoError("unreadable", f"video {name} has no frame size; its header is damaged or its size absurd")


def check_count(count: int, container: Any, name: str) -> None:
    """Raise VideoError for an impossible number of frames: in every codec a frame takes at least one byte."""
    if count > MAX_FRAMES or 0 < container.size < count:
        raise VideoError(
            "too_large",
            f"video {name} claims {count:,} frames in {container.size:,} bytes; at most {MAX_FRAMES:,} are taken,"
            " and no more than it has bytes",
        )


def choose_decoder(stream: Any) -> Any:
    """Choose the stream's decoder, or one that also decodes its transparency."""
    native = stream.codec_context
    codec = ALPHA_DECODERS.get(native.name)
    if codec not in av.codecs_available or stream.metadata.get("alpha_mode") != "1":
        return native
    return av.CodecContext.create(codec, "r")


def is_animated_webp(head: bytes) -> bool:
    """Whether a file is animated WebP. head: its first 21 bytes at least."""
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20 and bool(head[20] & 2)


def unpack(source: Source, name: str, kind: str) -> BinaryIO:
    """Convert an animated picture to a video in memory. Raises VideoError if it is still, broken or too large."""
    if isinstance(source, str | os.PathLike):
        file: Any = os.fspath(source)
    else:
        file = source
        file.seek(0)
    try:
        count, width, height = animated_images.look(file)
        if count == 1:
            raise VideoError("no_video", f"{name} is a still image ({kind}), not a video")
        if width * height > MAX_FRAME_PIXELS or count * width * height > MAX_ANIMATION_PIXELS:
            raise VideoError("too_large", f"video {name} has {count} frames of {width} x {height}: too many for memory")
        return animated_images.to_matroska(file)
    except VideoError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds
        raise VideoError("corrupt", f"video {name} cannot be decoded ({error})") from error
