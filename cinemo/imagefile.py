"""Open an image file within limits, or raise an error that says in one sentence why it cannot be used.

Headers are checked first: a picture that is too large or too narrow is refused before anything is decoded.
"""

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError, features

# Suffixes of the files that count as images in a folder. A file named explicitly is identified by its content alone.
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif",
    ".hif",
)  # fmt: skip
MAX_PIXELS = 64_000_000  # a 64-megapixel photo
MAX_ASPECT = 16  # the longer side over the shorter one
MIN_SIDE = 8
MAX_PROFILE = 16 << 20  # bytes of a colour profile

# First bytes of a file -> Pillow's name for its format. Pillow's other readers are never used.
FORMATS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
# First bytes, in lower case, of files that are mistaken for photos and not supported -> what to call them.
OTHERS = {
    b"8bps": "a Photoshop file",
    b"%pdf": "a PDF",
    b"<?xml": "an SVG drawing",
    b"<svg": "an SVG drawing",
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cjxl "), "JPEG XL"),
    **dict.fromkeys((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjp  "), "JPEG 2000"),
}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_USABLE = "save it as JPEG, PNG or WebP"
_TILE_SIDES, _SUBFILE = (322, 323), 254  # TIFF tags
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")  # PNG chunks


class ImageError(ValueError):
    """An image that cannot be used.

    `reason` is one of missing, unreadable, no_image, too_large, too_small, corrupt, wrong_aspect.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # Exception's own pickling would lose the second argument
        return (type(self), (self.reason, str(self)))


def read_bytes(path: Path, name: str) -> bytes:
    """Read the bytes of a file. Raises ImageError: missing, unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError("missing", f"{name} does not exist; check the path") from None
    except OSError as error:
        raise ImageError("unreadable", f"{name} cannot be read ({error.strerror}); pass a readable file") from None


def open_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the first picture of an image file: its header is read and checked, nothing decoded.

    data: the file. name: for messages. Raises ImageError: no_image, too_large, too_small, wrong_aspect.
    """
    kind = identify(data)
    check_kind(kind, name)
    profile = None
    if kind == "PNG":
        data, profile = without_large_chunks(data)
    if kind == "WEBP" and (size := webp_size(data)):  # Pillow allocates all pixels on opening
        check_header(*size, name, max_pixels)
    with _refusals(kind, name, max_pixels):
        picture = Image.open(io.BytesIO(data), formats=[kind])
    if profile:
        picture.info["icc_profile"] = profile
    check_header(*picture.size, name, max_pixels)
    if kind == "TIFF":
        check_tiff(picture, name, max_pixels)
    return picture


def identify(data: bytes) -> str:
    """Identify a file by its content: Pillow's name of its format, a phrase for other known files, or ""."""
    for start, kind in FORMATS.items():
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[at : at + 4] for at in range(8, end, 4)}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & HEIF_BRANDS:
            return "HEIF"
        return "a raw photo of a camera" if b"crx " in brands else "a video"
    start = data[:1024].lstrip().lower()
    return next((what for sign, what in OTHERS.items() if start.startswith(sign)), "")


def check_kind(kind: str, name: str) -> None:
    """Refuse unsupported files, naming their kind and the remedy. Raises ImageError (no_image)."""
    if not kind:
        raise ImageError("no_image", f"{name} is not an image that can be read; pass a JPEG, PNG or WebP file")
    if kind == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            message = "is a HEIC photo, which is not read here: save it as JPEG, or install pillow-heif"
            raise ImageError("no_image", f"{name} {message}") from None
        pillow_heif.register_heif_opener()
    elif kind == "AVIF":
        if not features.check("avif"):
            message = (
                "is an AVIF photo, which this Pillow does not read: save it as JPEG, or install Pillow 11.3 or later"
            )
            raise ImageError("no_image", f"{name} {message}")
    elif kind not in {*FORMATS.values(), "WEBP"}:
        raise ImageError("no_image", f"{name} is {kind}, which is not read here; {_USABLE}")


def check_header(width: int, height: int, name: str, max_pixels: int) -> None:
    """Refuse a picture by its size in pixels. Raises ImageError: too_large, too_small, wrong_aspect."""
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"{name} is {width} x {height} pixels; at most {max_pixels:,} are taken, so scale it down first",
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError("too_small", f"{name} is {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            "wrong_aspect",
            f"{name} is {width} x {height} pixels; at most {MAX_ASPECT} to 1 is taken, so cut out what is to be seen",
        )


def check_tiff(picture: Any, name: str, max_pixels: int) -> None:
    """Refuse large tiles, and raw photos, which begin with a preview. Raises ImageError: no_image, too_large."""
    tags = picture.tag_v2
    if tags.get(_SUBFILE, 0) & 1:
        raise ImageError("no_image", f"{name} holds a preview first, as raw photos of cameras do; {_USABLE}")
    wide, tall = (tags.get(tag, 0) for tag in _TILE_SIDES)
    if wide * tall > max_pixels:
        raise ImageError("too_large", f"{name} has tiles of {wide} x {tall} pixels; {_USABLE}")


def without_large_chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """Split a PNG into a file without texts and colour profile, and the profile: Pillow refuses these when large.

    The profile is None when missing, broken, or larger than MAX_PROFILE.
    """
    if not any(kind in data for kind in (b"iCCP", *_TEXTS)):
        return data, None
    whole, kept, packed, at = memoryview(data), bytearray(data[:8]), None, 8
    while at < len(data):
        end = at + 12 + int.from_bytes(whole[at : at + 4], "big")
        kind = bytes(whole[at + 4 : at + 8])
        if kind == b"iCCP":
            packed = packed or whole[at + 8 : end - 4]  # the first, if there are several
        elif kind not in _TEXTS:
            kept += whole[at:end]
        at = end
    return bytes(kept), inflate(bytes(packed).partition(b"\0")[2][1:]) if packed else None


def inflate(data: bytes) -> bytes | None:
    """Decompress zlib data; None if it is broken or larger than MAX_PROFILE."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(data, MAX_PROFILE)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else plain


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP, from its header (RFC 9649); None if the header is of another kind."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L":
        sides = int.from_bytes(body[1:5], "little")
        return (sides & 0x3FFF) + 1, (sides >> 14 & 0x3FFF) + 1
    sides = int.from_bytes(body[6:10], "little")
    return (sides & 0x3FFF, sides >> 16 & 0x3FFF) if kind == b"VP8 " else None


@contextmanager
def _refusals(kind: str, name: str, max_pixels: int) -> Iterator[None]:
    """Convert errors that Pillow raises while reading a header to ImageError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # our own limits are checked, and Pillow's warnings about tags help nobody
        try:
            yield
        except Image.DecompressionBombError:
            raise ImageError("too_large", f"{name} has more than {max_pixels:,} pixels; scale it down first") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, RuntimeError, KeyError, TypeError, EOFError):
            raise ImageError(
                "no_image", f"{name} is {kind}, but not an image that can be read: it is damaged or rare; {_USABLE}"
            ) from None
