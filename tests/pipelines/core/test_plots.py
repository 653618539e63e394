"""Pictures of numbers show the numbers: ink is where the values are."""

import io

import numpy as np
from PIL import Image

from pipelines.core import plots

BAR = (0x3B, 0x6E, 0xA5)
SMOOTH = (0x1F, 0x4E, 0x79)


def ink(png: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has this colour: bool (H, W)."""
    return (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) == colour).all(axis=-1)


def test_a_bar_is_as_high_as_its_number() -> None:
    heights = ink(plots.bars([1, 4, 2], "x", "y"), BAR).sum(axis=0)
    first, second, third = (np.median(part) for part in np.array_split(heights[heights > 0], 3))
    assert abs(second / first - 4) < 0.1
    assert abs(third / first - 2) < 0.1


def test_a_curve_that_falls_ends_at_the_bottom_right() -> None:
    values = [10.0, 8.0, 6.0, 4.0, 2.0, 0.0]
    rows, columns = np.nonzero(ink(plots.curve(values, values, "step", "loss"), SMOOTH))
    assert rows[columns.argmin()] < rows[columns.argmax()]
    assert np.corrcoef(rows, columns)[0, 1] > 0.99


def test_lines_go_through_their_points_and_have_names() -> None:
    falling = [(float(x), 10.0 - x) for x in range(11)]
    blue = (0x1F, 0x77, 0xB4)
    rows, columns = np.nonzero(ink(plots.lines({"a": falling}, "x", "y"), blue))
    inside = columns < np.quantile(columns, 0.7)  # without the legend's sample, on the right
    assert np.corrcoef(rows[inside], columns[inside])[0, 1] > 0.95
    with_diagonal = plots.lines({"a": falling}, "x", "y", diagonal=True)
    assert with_diagonal != plots.lines({"a": falling}, "x", "y")
