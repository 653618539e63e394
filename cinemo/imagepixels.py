"""Convert a picture opened by Pillow to uint8 RGB as a screen shows it: upright, in sRGB, over white.

Works in strips, so that it needs little memory in addition to the decoded picture and the result.
"""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from cinemo.imagefile import ImageError

STRIP = 1 << 20  # pixels converted at once
# Levels at which a profile is compared with sRGB; two sRGB profiles differ by up to 2 of 255, from rounding.
_LEVELS, _ROUNDING = np.array([0, 32, 64, 96, 128, 160, 192, 224, 255], np.uint8), 2
_GREYS = ("1", "L", "LA", "La", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_BITS, _PHOTOMETRIC = 258, 262  # TIFF tags


def to_rgb(picture: Image.Image, name: str) -> np.ndarray:
    """Decode a picture whose header was checked: uint8 (H, W, 3).

    name: for messages. Raises ImageError: corrupt; too_large without enough memory; no_image for values of unknown
    range.
    """
    try:
        picture.load()
        levels = value_levels(picture, name)
        picture = upright(picture)
        convert, mode = profile_to_srgb(picture)
        width, height = picture.size
        rgb = np.empty((height, width, 3), np.uint8)
        step = max(1, STRIP // width)
        for top in range(0, height, step):
            strip = picture.crop((0, top, width, min(top + step, height)))
            rgb[top : top + strip.height] = flatten(to_bytes(strip, levels, name), convert, mode)
        return rgb
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("too_large", f"{name} needs more memory than there is; scale it down first") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, KeyError, TypeError, IndexError) as error:
        raise ImageError("corrupt", f"{name} is damaged ({error}); save it anew") from None


def upright(picture: Image.Image) -> Image.Image:
    """Turn a picture according to its EXIF data, if these can be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF data may be broken in any way
        return picture


def value_levels(picture: Any, name: str) -> np.ndarray | None:
    """Table from 16-bit to 8-bit values by the range of the type, uint8 (65536,); None for a picture of other values.

    Raises ImageError (no_image) for signed and 32-bit integers, whose white level is unknown.
    """
    if not picture.mode.startswith("I"):
        return None
    tags = getattr(picture, "tag_v2", {})
    if picture.mode == "I" and tags:
        raise ImageError("no_image", f"{name} has signed or 32-bit integers; save it with 8 or 16 bits a channel")
    top = (1 << tags.get(_BITS, (16,))[0]) - 1
    levels = (np.arange(1 << 16).clip(0, top) * (255 / top)).round().astype(np.uint8)
    return 255 - levels if tags.get(_PHOTOMETRIC) == 0 else levels  # 0 is white, which Pillow inverts for 8 bits only


def to_bytes(strip: Image.Image, levels: np.ndarray | None, name: str) -> Image.Image:
    """Convert a strip of any mode to 8-bit values. Raises ImageError (no_image) for floats outside 0..1."""
    if strip.mode == "F":
        values = np.asarray(strip)
        if not ((values >= 0) & (values <= 1)).all():  # false for NaN as well
            raise ImageError("no_image", f"{name} has float values outside 0..1; save it with 8 or 16 bits a channel")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if levels is None:
        return strip
    values = np.asarray(strip).clip(0, len(levels) - 1)
    grey = Image.fromarray(levels[values])
    if (clear := strip.info.get("transparency")) is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def flatten(strip: Image.Image, convert: ImageCms.ImageCmsTransform | None, mode: str) -> np.ndarray:
    """Convert a strip of 8-bit values to uint8 (H, W, 3), alpha over white. mode: what `convert` takes."""
    see_through = strip.mode in _ALPHA or "transparency" in strip.info
    whole = strip.convert("RGBA") if see_through else strip
    colours = whole.convert("RGB") if see_through else strip
    if convert is not None:
        colours = convert.apply(colours.convert(mode))
    if see_through:
        colours.putalpha(whole.getchannel("A"))
        colours = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return np.asarray(colours.convert("RGB"))


def profile_to_srgb(picture: Image.Image) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The transform of a picture's colours to sRGB, None if none is needed, and the mode that it takes.

    A profile that is broken or for another kind of colours is ignored, as in browsers. One of sRGB needs no transform.
    """
    own = "L" if picture.mode in _GREYS else picture.mode if picture.mode in ("CMYK", "LAB") else "RGB"
    data = picture.info.get("icc_profile")
    try:
        if data:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        elif own == "LAB":
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            return None, own
        taken = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(profile.profile.xcolor_space.strip(), "")
        if taken != own and (taken, own) != ("RGB", "L"):  # a grey picture may have an RGB profile: R = G = B
            return None, own
        convert = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), taken, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, SyntaxError):
        return None, own
    return (None if taken == "RGB" and changes_nothing(convert) else convert), taken


def changes_nothing(convert: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform from RGB to RGB leaves all colours unchanged, except for rounding."""
    colours = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS), axis=-1).reshape(1, -1, 3)
    after = np.asarray(convert.apply(Image.fromarray(colours)))
    return int(np.abs(after.astype(int) - colours).max()) <= _ROUNDING
