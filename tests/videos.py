"""Video files that are odd in one way each, made by PyAV for the tests of reading."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def quadrants(height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 (H, W, 3): white and black above, red and blue below."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = COLOURS["white"]
    picture[height // 2 :, : width // 2] = COLOURS["red"]
    picture[height // 2 :, width // 2 :] = COLOURS["blue"]
    return picture


def corners(picture: np.ndarray) -> list[list[int]]:
    """The colours in the middle of the four quarters of uint8 (H, W, 3), row by row."""
    height, width, _ = picture.shape
    return [picture[y, x].tolist() for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    full_range: bool = False,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write uint8 (H, W, 3) or (H, W, 4) frames at 24 a second, or shown at `times` (1/24 s)."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = None
        for k, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgba" if array.shape[-1] == 4 else "rgb24")
            if stream is None:
                stream = container.add_stream(codec, rate=24, options=options or {})
                stream.height, stream.width = array.shape[:2]
                stream.pix_fmt = pix_fmt
                stream.codec_context.time_base = Fraction(1, 24)
                if full_range:
                    stream.codec_context.color_range = 2
            if full_range:
                frame = frame.reformat(format=pix_fmt, dst_color_range="JPEG")
                frame.color_range = 2
            frame.pts, frame.time_base = (times[k] if times else k), Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Moving stripes, uint8 (H, W, 3), whose upper edge says in black and white which frame it is: number_of."""
    y, x = np.mgrid[:height, :width]
    pictures = []
    for k in range(count):
        picture = np.repeat((128 + 100 * np.sin((x + y + 4 * k) / 7))[..., None], 3, axis=2).astype(np.uint8)
        for bit in range(8):
            picture[:8, 8 * bit : 8 * bit + 8] = 255 * (k >> bit & 1)
        pictures.append(picture)
    return pictures


def number_of(picture: np.ndarray) -> int:
    """Which of the numbered frames it is."""
    return sum((int(picture[4, 8 * bit + 4].mean()) > 127) << bit for bit in range(8))


def copy_packets(
    source: Path, target: Any, earlier: float = 0, without: int = 0, container_options: dict[str, str] | None = None
) -> Any:
    """The packets of a video in another file, undecoded, their timestamps so many seconds earlier, the first left out.

    In MP4 an edit list hides what comes to lie before 0, as `ffmpeg -ss N -c copy` leaves it.
    """
    name = str(target) if isinstance(target, Path) else target
    kind = None if isinstance(target, Path) else "matroska"
    with av.open(str(source)) as reader, av.open(name, "w", format=kind, options=container_options or {}) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        for packet in [packet for packet in reader.demux(stream) if packet.size][without:]:
            assert packet.pts is not None
            assert packet.dts is not None
            shift = round(earlier / stream.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            writer.mux(packet)
    return target
