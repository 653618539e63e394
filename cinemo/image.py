"""The input photo: bytes or a path -> RGB, and RGB -> the pixels a VAE takes.

The only place that validates images, and the only one that decides how a photo is fitted to a size. Knows nothing of
latents or video files.
"""

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 64_000_000  # a 64-megapixel photo; larger ones are refused from the header, before any decoding
MIN_SIDE = 8
ASPECT_TOLERANCE = 0.02  # of an edited first frame


class ImageError(ValueError):
    """An image that cannot be used.

    `reason` is one of missing, unreadable, no_image, too_large, too_small, corrupt, wrong_aspect.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # two arguments, which Exception's own pickling would lose
        return (type(self), (self.reason, str(self)))


def read_image(
    source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Open a photo as uint8 (H, W, 3) RGB: EXIF rotation applied, alpha laid over white, 16-bit and palettes converted.

    source: a path, the bytes of an image file, a PIL image, or uint8 (H, W, 3) which is passed through.
    max_pixels: most that are decoded.
    Raises ImageError (a ValueError), naming the file and the remedy: missing, empty, no image, broken or too large.
    """
    if isinstance(source, np.ndarray):
        return check_array(source)
    if isinstance(source, Image.Image):
        return to_rgb(source, "image", max_pixels)
    name = "image" if isinstance(source, bytes) else f"image {os.fspath(source)}"
    data = source if isinstance(source, bytes) else read_bytes(Path(source), name)
    if not data:
        raise ImageError("no_image", f"{name} is empty (0 bytes); pass a JPEG, PNG or WebP file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is checked below
        try:
            picture = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError:
            raise ImageError("too_large", f"{name} has more than {max_pixels:,} pixels; scale it down first") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            raise ImageError(
                "no_image", f"{name} is not an image that can be read; pass a JPEG, PNG or WebP file"
            ) from None
        return to_rgb(picture, name, max_pixels)


def read_bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("missing", f"{name} does not exist; check the path") from None
    except OSError as error:
        raise ImageError("unreadable", f"{name} cannot be read ({error.strerror}); pass a readable file") from None


def to_rgb(picture: Image.Image, name: str, max_pixels: int) -> np.ndarray:
    """PIL image -> uint8 (H, W, 3). Raises ImageError as read_image."""
    width, height = picture.size
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"{name} is {width} x {height} pixels; at most {max_pixels:,} are taken, so scale it down first",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", f"{name} is {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):  # 16-bit greys: PIL's own conversion would clip them to white
            grey = np.asarray(picture, np.float64)
            top = 65535.0 if grey.max() > 255 else 255.0
            return np.repeat((grey.clip(0, top) * (255.0 / top)).round().astype(np.uint8)[..., None], 3, axis=-1)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.array(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError("corrupt", f"{name} is damaged ({error}); save it anew") from None


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


def fit_pixels(image: np.ndarray, height: int, width: int, exact: bool = False) -> Tensor:
    """Scale a photo to cover height x width, cut the centre, and normalise: the official preparation, for any size.

    image: uint8 (H, W, 3). Returns float32 (1, 3, height, width) in [-1, 1]. Bilinear without antialiasing, and scaled
    to one pixel more than needed, because the official weights were trained and measured so. exact: an image of this
    size is taken as it is, as the frame of a video has to be.
    """
    source = torch.tensor(image).permute(2, 0, 1)[None].float() / 255.0
    if exact and source.shape[-2:] == (height, width):
        return source * 2.0 - 1.0
    scale = max((height + 1) / source.shape[-2], (width + 1) / source.shape[-1])
    scaled = F.interpolate(
        source, scale_factor=scale, mode="bilinear", align_corners=False, recompute_scale_factor=False
    )
    top, left, height, width = centre_crop(scaled.shape[-2], scaled.shape[-1], height, width)
    return scaled[..., top : top + height, left : left + width] * 2.0 - 1.0


def centre_crop(full_height: int, full_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the centred window."""
    return round((full_height - height) / 2.0), round((full_width - width) / 2.0), height, width
