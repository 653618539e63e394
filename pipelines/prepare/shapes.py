"""Shapes of clips: reads the sizes and lengths that flags name, and chooses those of a video's clips.

In code a size is (height, width) in pixels, in flags and messages WIDTHxHEIGHT.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

Size = tuple[int, int]

MULTIPLE, SMALLEST, LARGEST = 8, 64, 4096  # of a side, in pixels
WIDEST = 16 / 9  # aspect of the widest bucket; the tallest is its inverse
STEP = 16  # sides of buckets are multiples of this: an even number of the usual latent cells of 8 pixels
MAX_ENLARGEMENT = 1.2  # default where there are several sizes
EQUAL = 1e-6  # logarithms of aspects that differ by less count as equal


def check_sizes(text: str) -> str:
    """Check a list such as "512x320,320x512"; returns it without spaces and repeats. Raises ValueError."""
    sizes = list(dict.fromkeys("".join(text.split()).lower().split(",")))
    for size in sizes:
        if not re.fullmatch(r"\d{1,5}x\d{1,5}", size):
            raise ValueError(f"{size!r} is not a size; write WIDTHxHEIGHT, such as 512x320,320x512")
        for side in map(int, size.split("x")):
            if side % MULTIPLE or not SMALLEST <= side <= LARGEST:
                near = min(max(round(side / MULTIPLE) * MULTIPLE, SMALLEST), LARGEST)
                raise ValueError(
                    f"{side} of {size} is not a multiple of {MULTIPLE} from {SMALLEST} to {LARGEST}; take {near}"
                )
    return ",".join(sizes)


def read_sizes(text: str) -> list[Size]:
    """Read the sizes of a list that check_sizes returned."""
    pairs = (size.split("x") for size in text.split(","))
    return [(int(height), int(width)) for width, height in pairs]


def check_lengths(given: Any) -> Any:
    """Check numbers of frames: one as a number, several as text such as "8,16", rising. Raises ValueError."""
    parts = str(given).replace(" ", "").split(",")
    if isinstance(given, bool) or not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise ValueError(f"{given!r} should be a number of frames from 2 on, or several, such as 8,16")
    lengths = sorted({int(part) for part in parts})
    return lengths[0] if len(lengths) == 1 else ",".join(map(str, lengths))


def read_lengths(checked: int | str) -> list[int]:
    """Read the numbers of frames that check_lengths returned, rising."""
    return [int(part) for part in str(checked).split(",")]


def sizes_of_area(area: int, buckets: int, factor: int) -> list[Size]:
    """Sizes of about `area` pixels with aspects from WIDEST to its inverse, evenly spaced in their logarithm.

    factor: pixels per latent cell, per side. Raises ValueError for an area that gives fewer sizes than buckets, or
    sides that are too small or too large.
    """
    step = max(STEP, factor)
    sizes = [size_of_area(area, WIDEST ** (1 - 2 * place / (buckets - 1)), step) for place in range(buckets)]
    if len(set(sizes)) < buckets or min(min(size) for size in sizes) < max(SMALLEST, 2 * factor):
        raise ValueError(
            f"--area {area} is too small for --aspect-buckets {buckets} in steps of {step} pixels, the least for this "
            "model; raise it, or take fewer buckets"
        )
    if max(max(size) for size in sizes) > LARGEST:
        raise ValueError(f"--area {area} gives sides above {LARGEST} pixels; lower it")
    return sizes


def size_of_area(area: int, aspect: float, step: int) -> Size:
    """Size of about an area and aspect (width to height), with sides that are multiples of `step`."""
    if aspect < 1 - EQUAL:  # buckets of inverse aspects are the same sizes, turned
        height, width = size_of_area(area, 1 / aspect, step)
        return width, height
    # The two multiples around the exact height, with the width nearest to the aspect's; the area decides.
    exact = math.sqrt(area / aspect)
    heights = [max(1, math.floor(exact / step)) * step, math.ceil(exact / step) * step]
    pairs = [(height, max(1, round(height * aspect / step)) * step) for height in heights]
    return min(pairs, key=lambda size: abs(math.log(size[0] * size[1] / area)))


def enlargement(shown: Size, size: Size) -> float:
    """Factor by which a video that is shown at size `shown` is enlarged to cover `size`; below 1 it is reduced."""
    return max(size[0] / shown[0], size[1] / shown[1])


def choose_size(shown: Size, sizes: Sequence[Size], limit: float | None) -> Size:
    """Choose the size whose aspect is nearest to that of a video shown at size `shown`, so that least is cut away.

    Of several sizes with one aspect: the largest that enlarges it at most `limit` times (None: any), else the smallest.
    """

    def distance(size: Size) -> float:
        return abs(math.log(size[1] / size[0] * shown[0] / shown[1]))

    nearest = min(map(distance, sizes))
    alike = sorted((size for size in sizes if distance(size) < nearest + EQUAL), key=lambda size: size[0] * size[1])
    allowed = [size for size in alike if limit is None or enlargement(shown, size) <= limit]
    return allowed[-1] if allowed else alike[0]


def choose_length(frames: int, min_interval: int, lengths: Sequence[int]) -> int:
    """Choose the greatest length that fits into so many frames of a video at the smallest interval, else the least."""
    return max((length for length in lengths if (length - 1) * min_interval < frames), default=min(lengths))
