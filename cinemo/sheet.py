"""Contact sheets: one picture with rows of frames, a label above each row."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cinemo import provenance

MARGIN = 6  # pixels between frames
INK, PAPER = (30, 30, 30), (250, 250, 248)


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], columns: int = 6, frame_width: int = 192) -> Image.Image:
    """Draw one row per clip: its label above `columns` frames, evenly spaced from the first to the last.

    rows: (label, uint8 (N, H, W, 3)). frame_width: pixels. Raises ValueError for no rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    heights = [round(frame_width * clip.shape[1] / clip.shape[2]) for _, clip in rows]
    font = ImageFont.load_default(size=14)
    label_height = 22
    ends = np.cumsum([label_height + height + MARGIN for height in heights]).tolist()
    sheet = Image.new("RGB", (MARGIN + columns * (frame_width + MARGIN), MARGIN + ends[-1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    for (label, clip), frame_height, end in zip(rows, heights, ends, strict=True):
        top = end - frame_height - label_height
        draw.text((MARGIN, top), label, INK, font)
        for column, index in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            frame = Image.fromarray(clip[index]).resize((frame_width, frame_height), Image.Resampling.LANCZOS)
            sheet.paste(frame, (MARGIN + column * (frame_width + MARGIN), top + label_height))
    return sheet


def sheet_png(rows: Sequence[tuple[str, np.ndarray]]) -> bytes | None:
    """Draw a contact sheet, as the bytes of a PNG; None if there are no rows."""
    if not rows:
        return None
    buffer = io.BytesIO()
    contact_sheet(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def write_sheet(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Write a picture as PNG; the file appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    picture.save(aside, format="PNG", pnginfo=provenance.png_info())
    aside.replace(path)
