"""Machine-readable marks of generated media: XMP with IPTC's digital source type.

The European AI Act, Article 50(2), asks for such marks. The terms are those of
https://cv.iptc.org/newscodes/digitalsourcetype; Part 3 of the XMP specification says where each format stores XMP.
"""

import os
import re
import struct
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

GENERATED = "trainedAlgorithmicMedia"  # made by a trained model
DRAWN = "algorithmicMedia"  # made by code without training data
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])  # from any byte of it, readers of sub-blocks find the end
SEGMENT = bytes.fromhex("18538067")  # id of a WebM file's main element
HAS_XMP = 0x04  # in the flags of WebP's VP8X chunk


def packet(source: str = GENERATED) -> bytes:
    """Make an XMP packet with a digital source type. It is always the same, so that equal videos give equal files."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' xmp:CreatorTool="Cinemo" Iptc4xmpExt:DigitalSourceType="{TERMS}{source}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def mark(path: str | os.PathLike[str], source: str = GENERATED) -> None:
    """Add the mark to an .mp4, .webm, or animated .gif or .webp. Pictures get it from Pillow (`packet`, `png_info`)."""
    file = Path(path)
    data, xmp = file.read_bytes(), packet(source)
    if file.suffix == ".mp4":  # a new box at the end
        data += struct.pack(">I4s", 24 + len(xmp), b"uuid") + XMP_UUID + xmp
    elif file.suffix == ".webm":  # a tag at the end of the segment, whose length is in the 8 bytes after its id
        tag = ebml("45a3", b"XMP") + ebml("4487", xmp)
        tags = ebml("1254c367", ebml("7373", ebml("63c0", b"") + ebml("67c8", tag)))
        start = data.index(SEGMENT) + len(SEGMENT)
        length = int.from_bytes(data[start + 1 : start + 8]) + len(tags)
        data = data[: start + 1] + length.to_bytes(7) + data[start + 8 :] + tags
    elif file.suffix == ".gif":  # an application extension, after the header and the global palette
        start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
        data = data[:start] + b"!\xff\x0bXMP DataXMP" + xmp + GIF_TRAILER + data[start:]
    else:
        assert file.suffix == ".webp", file
        if data[12:16] != b"VP8X":  # a single frame has no extended header
            with Image.open(file) as picture:
                size = b"".join((side - 1).to_bytes(3, "little") for side in picture.size)
            data = data[:12] + b"VP8X" + struct.pack("<IB3x", 10, 0) + size + data[12:]
        chunk = b"XMP " + struct.pack("<I", len(xmp)) + xmp + b"\0" * (len(xmp) % 2)
        flags = bytes([data[20] | HAS_XMP])
        data = b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:20] + flags + data[21:] + chunk
    file.write_bytes(data)


def ebml(name: str, contents: bytes) -> bytes:
    """Encode an element of Matroska and WebM (RFC 8794). name: its id, in hexadecimal."""
    return bytes.fromhex(name) + b"\x01" + len(contents).to_bytes(7) + contents


def png_info(source: str = GENERATED) -> PngInfo:
    """Make the mark as Pillow's argument `pnginfo`."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet(source).decode())
    return info


def read_mark(path: str | os.PathLike[str]) -> str | None:
    """Read the digital source type of a file of any format, such as `trainedAlgorithmicMedia`; None if it has none."""
    found = re.search(rb"DigitalSourceType\W[^<>]{0,20}" + TERMS.encode() + rb"(\w+)", Path(path).read_bytes())
    return found[1].decode() if found else None
