"""Write frames as a video file."""

import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange
from PIL import Image

from cinemo import content_credentials, provenance


def x264_options() -> dict[str, str]:
    """Options of libx264 with which equal frames give equal files, on any machine. A crf of 18 is visually lossless.

    Threads that share a picture race, and threads that take one each give other files for other numbers of them. Its
    AVX-512 code (macroblock tree) gives one of several files for pictures of some widths, as that of AVX2 does not.
    """
    cpuinfo = Path("/proc/cpuinfo")
    has_avx512 = cpuinfo.exists() and "avx512" in cpuinfo.read_text()
    return {"crf": "18", "threads": "1", **({"x264-params": "asm=AVX2"} if has_avx512 else {})}


# Encoder, its options, and the container's, by ending. A crf of 24 is in VP9 about as good as 18 in H.264. bitexact:
# without it a WebM gets a random id, and equal videos would give other files.
CODECS = {
    ".mp4": ("libx264", x264_options(), {"movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4"}, {"fflags": "+bitexact"}),
}
HD_LINES = 720
BT709, SMPTE170M = 1, 6  # codes of primaries, transfer and matrix alike (ITU-T H.273)


def write_video(
    path: str | os.PathLike[str], frames: np.ndarray, fps: float = 8, source: str = provenance.GENERATED
) -> None:
    """Write frames as .mp4 (H.264, plays while loading), .webm (VP9), .gif or .webp, by the path's ending.

    frames: uint8 (N, H, W, 3), RGB; an odd height or width gets one repeated row or column in mp4 and webm. source: the
    digital source type that the file is marked with, and signed for if a certificate is set (content_credentials.py).
    The file appears complete or not at all. Raises ValueError for other arrays, endings, or an fps outside 1..240
    (GIF 50, WebP 90).
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
        provenance.mark(aside, source)
        content_credentials.sign(Path(aside), source)
        os.chmod(aside, 0o644)  # mkstemp makes it private
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], fps: float) -> Path:
    """Return the path if write_video can write there, else raise ValueError: call it before hours of work."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"output {path} is a directory; name a file in it, such as {path / 'out.mp4'}")
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"output {path} ends in {path.suffix or 'nothing'}; use {', '.join(WRITERS)}")
    check_fps(fps, path.suffix.lower())
    return path


def check_fps(fps: float, ending: str) -> None:
    """Raise ValueError for frames a second that players of such a file do not show. ending: a key of MOST_FPS."""
    most = MOST_FPS[ending]
    if not 1 <= fps <= most:
        slow = f": browsers would play a faster {ending} at 10; use .mp4" if 1 <= fps <= MOST_FPS[".mp4"] else ""
        raise ValueError(f"fps {fps:g} is outside 1..{most}{slow}")


def write_film(path: str, frames: np.ndarray, fps: float) -> None:
    """Write H.264 or, as .webm, VP9, tagged with the colours that players would assume: BT.709 from 720 lines on, else
    BT.601."""
    codec, options, container_options = CODECS[path[path.rindex(".") :]]
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    matrix, tag = ("ITU709", BT709) if height >= HD_LINES else ("ITU601", SMPTE170M)
    with av.open(path, "w", options=container_options) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = options
        colours = stream.codec_context
        colours.colorspace = colours.color_primaries = colours.color_trc = tag
        colours.color_range = ColorRange.MPEG
        for frame in frames:
            rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range="MPEG")))
        container.mux(stream.encode())


def write_animation(path: str, frames: np.ndarray, fps: float) -> None:
    """Write GIF, with an adaptive palette for each frame, or WebP. Repeated frames are kept as frames."""
    is_gif = path.endswith(".gif")
    unit = Fraction(1, 100 if is_gif else 1000)  # the format's time unit, in seconds
    with av.open(path, "w", options={"loop": "0"}) as container:  # 0: forever
        stream: Any = container.add_stream("gif" if is_gif else "libwebp", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "pal8" if is_gif else "bgra"
        stream.codec_context.time_base = unit
        stream.options = {} if is_gif else {"quality": "80"}
        for k, array in enumerate(frames):
            frame = with_palette(array) if is_gif else av.VideoFrame.from_ndarray(array, format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = round(k / fps / unit), unit
            frame.duration = round((k + 1) / fps / unit) - frame.pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def with_palette(picture: np.ndarray) -> av.VideoFrame:
    """Reduce a picture, uint8 (H, W, 3), to 256 colours."""
    reduced = Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE)
    colours = np.array(reduced.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    palette[:, 0], palette[: len(colours), 1:] = 255, colours
    return av.VideoFrame.from_ndarray((np.asarray(reduced), palette), format="pal8")


WRITERS = {".mp4": write_film, ".webm": write_film, ".gif": write_animation, ".webp": write_animation}
# Browsers show a GIF's frame for 100 ms if it is given less than 20 ms, a WebP's if it is given less than 11.
MOST_FPS = {".mp4": 240, ".webm": 240, ".gif": 50, ".webp": 90}
