"""Image files of kinds that tests need and Pillow does not write."""

import io
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

# Tags of a TIFF of 32 x 16 pixels in 16-bit greys, one strip at byte 8; 0 is black.
GREY = {256: 32, 257: 16, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 1024}


def save(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags: Mapping[int, int], data: bytes) -> bytes:
    """A TIFF with these tags, a number each, and its pixels from byte 8 on."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def profile(space: bytes, tags: Mapping[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A colour profile (ICC.1:2001-04) of a space such as b"RGB ", with tags."""
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    head = bytes(4) + b"test" + bytes.fromhex("02400000") + kind + space + connection + bytes(12) + b"acsp" + bytes(28)
    head += numbers(0.9642, 1, 0.8249) + bytes(48)
    return struct.pack(">I", at + len(body)) + head[4:] + table + body


def numbers(*values: float) -> bytes:
    """Values as ICC's s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def gamma(value: float) -> bytes:
    """A curve of a colour profile: light = signal ** value."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256)) + bytes(2)


def xyz(*values: float) -> bytes:
    """A colour of a colour profile."""
    return b"XYZ " + bytes(4) + numbers(*values)
