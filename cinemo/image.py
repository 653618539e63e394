"""The input photo: bytes or a path -> RGB, and RGB -> the pixels a VAE takes.

The only reader of images, for the command, the catalog and the service alike (imagefile.py bounds files, imagepixels.py
converts pixels), and the only place that decides how a photo is fitted to a size. Knows nothing of latents or video
files. Loads no torch until pixels are made.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cinemo.imagefile import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MIN_SIDE,
    ImageError,
    check_header,
    open_picture,
    read_bytes,
)
from cinemo.imagepixels import to_rgb

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageError",
    "check_aspect",
    "cut_away",
    "fit_pixels",
    "fitting_size",
    "read_image",
]

ASPECT_TOLERANCE = 0.02  # of an edited first frame
FITS = ("crop", "pad")
NOTABLE_CUT = 1 / 3  # of a photo; a larger share that is cut away is said in the result
BLUR = 0.05  # of the bars of a padded photo: the Gaussian's sigma, as a share of the shorter side


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Open a photo as uint8 (H, W, 3) RGB as it is seen: upright, in sRGB, transparency over white, the first picture.

    source: a path, the bytes of an image file, a PIL image, or uint8 (H, W, 3) which is passed through.
    max_pixels: most that are decoded; reading takes at most 20 bytes a pixel (HEIC: 26) beside the file.
    Values of 16 bits and floats become 8 bits by the range of their type.
    Raises ImageError (a ValueError), naming the file and the remedy: missing, empty, no image, broken, too large, or
    thinner than 1 to 16.
    """
    if isinstance(source, np.ndarray):
        return check_array(source)
    if isinstance(source, Image.Image):
        check_header(*source.size, "image", max_pixels)
        return to_rgb(source, "image")
    name = "image" if isinstance(source, bytes) else f"image {os.fspath(source)}"
    data = source if isinstance(source, bytes) else read_bytes(Path(source), name)
    return to_rgb(open_picture(data, name, max_pixels), name)


def check_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or min(array.shape[:2]) < MIN_SIDE:
        raise ValueError(f"image is {array.dtype} {array.shape}; pass uint8 (H, W, 3) in RGB, at least 8 x 8")
    return array


def check_aspect(image: np.ndarray, height: int, width: int) -> None:
    """Raise ImageError unless an edited frame has its video's aspect, within 2 %: cutting it would move its content.

    image: uint8 (H, W, 3). height, width: of the video's frames.
    """
    tall, wide = image.shape[:2]
    if abs(wide * height / (tall * width) - 1) > ASPECT_TOLERANCE:
        raise ImageError(
            "wrong_aspect",
            f"image is {wide} x {tall} pixels, and the video's frames are {width} x {height}: edit the frame without "
            "changing its aspect (`cinemo edit VIDEO --first-frame frame.png` writes it)",
        )


def fitting_size(tall: int, wide: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of a model's trained sizes (H, W), the large one whose aspect is nearest to that of a photo, tall x wide pixels.

    Large are those with more than 0.9 of the pixels of the largest.
    """
    largest = max(height * width for height, width in sizes)
    large = [size for size in sizes if size[0] * size[1] > 0.9 * largest]
    return min(large, key=lambda size: abs(math.log(size[1] / size[0] * tall / wide)))


def cut_away(tall: int, wide: int, height: int, width: int) -> float:
    """The share of a photo, tall x wide pixels, that is cut away to fill height x width: 0 for one of its aspect."""
    ratio = wide * height / (tall * width)
    return 1 - min(ratio, 1 / ratio)


def fit_pixels(image: np.ndarray, height: int, width: int, exact: bool = False, fit: str = "crop") -> "Tensor":
    """Bring a photo to height x width, and normalise.

    image: uint8 (H, W, 3). Returns float32 (1, 3, height, width) in [-1, 1].
    fit: "crop" scales the photo to cover the size and cuts the centre, the official preparation for any size: bilinear
    without antialiasing, and scaled to one pixel more than needed, because the official weights were trained and
    measured so. "pad" shows all of the photo, between bars that go on from its borders, blurred. exact: an image of
    this size is taken as it is, as the frame of a video has to be.
    Memory: some times that of the result, however large the photo. Raises ValueError for another fit.
    """
    import torch

    if fit not in FITS:
        raise ValueError(f"fit {fit!r} is unknown; use {' or '.join(map(repr, FITS))}")
    if exact and image.shape[:2] == (height, width):
        fitted = image.astype(np.float32) / np.float32(255)
    elif fit == "pad":
        fitted = padded(image, height, width)
    else:
        scale = max((height + 1) / image.shape[0], (width + 1) / image.shape[1])
        fitted = scale_window(image, scale, height, width)
    return torch.from_numpy(np.ascontiguousarray(fitted.transpose(2, 0, 1)))[None] * 2.0 - 1.0


def scale_window(image: np.ndarray, scale: float, height: int, width: int) -> np.ndarray:
    """The centred window of a scaled image, cut before it is scaled: float32 (height, width, 3) in [0, 1].

    image: uint8 (H, W, 3). Equals torch's interpolate(scale_factor=scale, mode="bilinear", align_corners=False,
    recompute_scale_factor=False) of the whole, cut afterwards.
    """
    above, below, down = neighbours(image.shape[0], scale, height)
    left, right, across = neighbours(image.shape[1], scale, width)
    down, across = down[:, None, None], across[None, :, None]

    def row(places: np.ndarray) -> np.ndarray:
        line = image[places]
        return line[:, left] * (1 - across) + line[:, right] * across

    return (row(above) * (1 - down) + row(below) * down) / np.float32(255)


def neighbours(length: int, scale: float, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the centred `wanted` pixels of a side that is scaled: the two pixels of the side that each lies between, and
    how near it is to the second, float32 in [0, 1]. length: pixels of the side before it is scaled.
    """
    first = round((int(length * scale) - wanted) / 2.0)
    step = float(np.float32(1 / scale))  # torch has places as float32, and rounds once
    at = np.maximum((np.arange(first, first + wanted) + 0.5) * step - 0.5, 0).astype(np.float32)
    lower = np.minimum(at.astype(np.int64), length - 1)
    return lower, np.minimum(lower + 1, length - 1), np.minimum(at - lower.astype(np.float32), np.float32(1))


def padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """All of a photo, scaled, between bars that go on from its borders, ever more blurred: as scale_window returns."""
    from scipy.ndimage import gaussian_filter

    scale = min(height / image.shape[0], width / image.shape[1])
    tall = min(height, max(1, round(scale * image.shape[0])))
    wide = min(width, max(1, round(scale * image.shape[1])))
    photo = scale_window(image, max(tall / image.shape[0], wide / image.shape[1]), tall, wide)
    top, left = (height - tall) // 2, (width - wide) // 2
    space = ((top, height - tall - top), (left, width - wide - left), (0, 0))
    blur = BLUR * min(height, width)
    bars = gaussian_filter(np.pad(photo, space, "edge"), (blur, blur, 0), mode="nearest")
    bars[top : top + tall, left : left + wide] = photo
    return bars
