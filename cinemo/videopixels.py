"""Decoded frames as the pictures that a player shows: deinterlaced, square pixels, upright, sRGB, over white.

A picture depends on its frame alone, wherever decoding began.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc, VideoReformatter

from cinemo import hdr

INTERLACED = "interlaced"
TRANSFERS = {ColorTrc.SMPTE2084: hdr.PQ, ColorTrc.ARIB_STD_B67: hdr.HLG}
# Colour matrices (ITU-T H.273) that FFmpeg's scaler refuses -> the nearest that it takes: BT.2020 with constant
# luminance -> without; derived from the primaries -> BT.709.
NEAREST = {10: 9, 12: 1, 13: 1}
PRIMARIES = {ColorPrimaries.BT2020: hdr.BT2020, ColorPrimaries.SMPTE432: hdr.P3}


def render_all(
    frames: Iterable[Any], size: tuple[int, int] | None, aspect: Fraction = Fraction(1), found: set[str] | None = None
) -> Iterator[np.ndarray]:
    """Decoded frames as uint8 (H, W, 3): scaled by FFmpeg's scaler in this thread to cover size (H, W), cut, upright.

    aspect: width of a stored pixel to its height; without a size the height is kept. found: gets INTERLACED, hdr.PQ or
    hdr.HLG, where a frame is so.
    """
    scaler, alpha_scaler = VideoReformatter(), VideoReformatter()  # kept for a clip: setting one up takes a while
    found = set() if found is None else found
    for frame in deinterlaced(frames, found):
        if frame.colorspace in NEAREST:
            frame.colorspace = NEAREST[frame.colorspace]
        turns = turns_of(frame)
        shown_width = max(1, round(frame.width * aspect))
        height, width = size if size is not None else (frame.height, shown_width)
        if size is not None and turns % 2:
            height, width = width, height
        scale = max(height / frame.height, width / shown_width)
        full_height = max(height, round(frame.height * scale))
        full_width = max(width, round(shown_width * scale))
        shape = {"width": full_width, "height": full_height, "interpolation": "BILINEAR", "threads": 1}
        transfer, primaries = TRANSFERS.get(frame.color_trc), PRIMARIES.get(frame.color_primaries)
        if transfer or primaries:
            found |= {transfer} if transfer else set()
            rgb = hdr.to_srgb(scaler.reformat(frame, format="rgb48le", **shape).to_ndarray(), transfer, primaries)
        else:
            rgb = scaler.reformat(frame, format="rgb24", **shape).to_ndarray()
        if frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components):
            alpha = alpha_scaler.reformat(frame, format="rgba", **shape).to_ndarray()[..., 3:]
            rgb = over_white(rgb, alpha)
        top, left = (full_height - height) // 2, (full_width - width) // 2
        rgb = rgb[top : top + height, left : left + width]
        yield np.ascontiguousarray(np.rot90(rgb[::-1] if is_mirrored(frame) else rgb, turns))


def turns_of(frame: Any) -> int:
    """Quarter turns to the left that make a frame upright: 0 to 3.

    A mirrored frame must be flipped upside down first; these turns then put it as its display matrix says.
    """
    degrees = getattr(frame, "rotation", 0)
    return round(degrees / 90) % 4 if abs(degrees) <= 180 else 0  # beyond: NaN as an integer, of a degenerate matrix


def is_mirrored(frame: Any) -> bool:
    """Whether a frame is shown mirrored: its display matrix has a negative determinant."""
    try:
        stored = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV raises it for all side data if it does not know one kind, such as Exif
        return False
    if stored is None:
        return False
    a, b, _, c, d = np.frombuffer(stored, np.int32)[:5].tolist()
    return bool(a * d < b * c)


def is_turned(frame: Any) -> bool:
    """Whether height and width of a frame are exchanged when it is shown; False for None."""
    return turns_of(frame) % 2 == 1


def deinterlaced(frames: Iterable[Any], found: set[str]) -> Iterator[Any]:
    """The frames; of interlaced ones the lines of the upper field, the others drawn from these (estdif).

    By no other frame, unlike yadif: the pixels are the same from wherever decoding began.
    """
    for frame in frames:
        if not frame.interlaced_frame:
            yield frame
            continue
        found.add(INTERLACED)
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
        )
        graph.link_nodes(source, graph.add("estdif", "mode=frame:parity=tff"), graph.add("buffersink")).configure()
        graph.push(frame)
        graph.push(None)
        yield graph.pull()


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) under uint8 (H, W, 1) opacity, on white: what image.py does with a photo."""
    mixed = rgb.astype(np.uint16) * alpha + 255 * (255 - alpha.astype(np.uint16))
    return ((mixed + 127) // 255).astype(np.uint8)
