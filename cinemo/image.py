"""The input photo: read it as RGB, and fit it to a size as the pixels a VAE takes.

The only reader of images, shared by the command, the catalog and the service (imagefile.py checks files, imagepixels.py
converts pixels), and the only place that decides how a photo is fitted to a size. torch is imported only in fit_pixels.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cinemo.imagefile import IMAGE_SUFFIXES, MAX_PIXELS, MIN_SIDE, ImageError, check_header, open_picture, read_bytes
from cinemo.imagepixels import to_rgb
from cinemo.mistaken import HEAD, mistaken

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

ASPECT_TOLERANCE = 0.02  # relative, of an edited first frame
FITS = ("crop", "pad")
NOTABLE_CUT = 1 / 3  # share of a photo; cutting away more is reported with the result
BLUR = 0.05  # sigma of the Gaussian that blurs a padded photo's bars, as a share of the shorter side


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read a photo as uint8 (H, W, 3) RGB, as it is seen: upright, in sRGB, transparency over white.

    source: a path, the bytes of an image file, a PIL image, or uint8 (H, W, 3), which is passed through. A file with
    several pictures gives its first. max_pixels: largest picture decoded; reading takes at most 20 bytes a pixel
    (HEIC: 26) in addition to the file. 16-bit and float values become 8-bit by the range of their type.
    Raises ImageError (a ValueError), naming the file and the remedy, when it is missing, empty, not an image, broken,
    too large, or of an aspect beyond 16 to 1.
    """
    if isinstance(source, np.ndarray):
        return check_array(source)
    if isinstance(source, Image.Image):
        check_header(*source.size, "image", max_pixels)
        return to_rgb(source, "image")
    name = "image" if isinstance(source, bytes) else f"image {os.fspath(source)}"
    data = source if isinstance(source, bytes) else read_bytes(Path(source), name)
    if what := mistaken(data[:HEAD], len(data)):
        raise ImageError("no_image", f"{name} {what}; pass a JPEG, PNG or WebP file")
    return to_rgb(open_picture(data, name, max_pixels), name)


def check_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3 or min(array.shape[:2]) < MIN_SIDE:
        raise ValueError(f"image is {array.dtype} {array.shape}; pass uint8 (H, W, 3) in RGB, at least 8 x 8")
    return array


def check_aspect(image: np.ndarray, height: int, width: int) -> None:
    """Raise ImageError unless an edited frame has its video's aspect, within 2 %: cropping would move its content.

    image: uint8 (H, W, 3). height, width: size of the video's frames, in pixels.
    """
    tall, wide = image.shape[:2]
    if abs(wide * height / (tall * width) - 1) > ASPECT_TOLERANCE:
        raise ImageError(
            "wrong_aspect",
            f"image is {wide} x {tall} pixels, and the video's frames are {width} x {height}: edit the frame without "
            "changing its aspect (`cinemo edit VIDEO --first-frame frame.png` writes it)",
        )


def fitting_size(tall: int, wide: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Choose the size (H, W) whose aspect is nearest to that of a photo of tall x wide pixels.

    sizes: those the model was trained for. Only sizes with more than 0.9 of the pixels of the largest are considered.
    """
    largest = max(height * width for height, width in sizes)
    large = [size for size in sizes if size[0] * size[1] > 0.9 * largest]
    return min(large, key=lambda size: abs(math.log(size[1] / size[0] * tall / wide)))


def cut_away(tall: int, wide: int, height: int, width: int) -> float:
    """Share of a photo of tall x wide pixels that is cut away to fill height x width; 0 if the aspects are equal."""
    ratio = wide * height / (tall * width)
    return 1 - min(ratio, 1 / ratio)


def fit_pixels(image: np.ndarray, height: int, width: int, exact: bool = False, fit: str = "crop") -> "Tensor":
    """Fit a photo to height x width, and normalise it.

    image: uint8 (H, W, 3). Returns float32 (1, 3, height, width) in [-1, 1].
    fit: "crop" scales the photo to cover the size and crops its centre, as the official code does: bilinear without
    antialiasing, and one pixel larger than needed, because the official weights were trained and measured that way.
    "pad" shows the whole photo between bars, its borders extended and blurred. exact: use an image of this size
    unchanged, as the frame of a video must be.
    Memory: a few times the result's, however large the photo. Raises ValueError for another fit.
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
    """Scale only the centred window of an image: float32 (height, width, 3) in [0, 1].

    image: uint8 (H, W, 3). Equals the centre of torch's interpolate(scale_factor=scale, mode="bilinear",
    align_corners=False, recompute_scale_factor=False) of the whole image.
    """
    above, below, down = neighbours(image.shape[0], scale, height)
    left, right, across = neighbours(image.shape[1], scale, width)
    down, across = down[:, None, None], across[None, :, None]

    def row(places: np.ndarray) -> np.ndarray:
        line = image[places]
        return line[:, left] * (1 - across) + line[:, right] * across

    return (row(above) * (1 - down) + row(below) * down) / np.float32(255)


def neighbours(length: int, scale: float, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolation along a side: for each of the centred `wanted` pixels after scaling, the two source pixels that it
    lies between and the weight of the second, float32 in [0, 1]. length: pixels of the side before scaling.
    """
    first = round((int(length * scale) - wanted) / 2.0)
    step = float(np.float32(1 / scale))  # torch computes positions in float32, and rounds once
    at = np.maximum((np.arange(first, first + wanted) + 0.5) * step - 0.5, 0).astype(np.float32)
    lower = np.minimum(at.astype(np.int64), length - 1)
    return lower, np.minimum(lower + 1, length - 1), np.minimum(at - lower.astype(np.float32), np.float32(1))


def padded(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale the whole photo, between bars that extend its borders, blurred. Returns the same as scale_window."""
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
