"""Which image files are opened: by content and within bounds; the rest is refused from the header, by its own name."""

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cinemo.image import ImageError, read_image
from cinemo.imagefile import MAX_PROFILE
from tests.pictures import GREY, chunk, save, tiff

FIELD = Path(__file__).parent / "field"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_the_first_picture_of_each_format_is_read(kind: str) -> None:
    options: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (48, 32), (0, 0, 255))]}
    first = read_image(
        save(Image.new("RGB", (48, 32), (255, 0, 0)), kind, **({} if kind in ("JPEG", "BMP") else options))
    )
    assert first.shape == (32, 48, 3)
    assert np.abs(first.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", [(8, 1000), (1000, 8)])
def test_a_thin_picture_of_any_format_is_refused(kind: str, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="at most 16 to 1") as caught:
        read_image(save(Image.new("L" if kind == "PNG" else "RGB", size), kind))
    assert caught.value.reason == "wrong_aspect"
    with pytest.raises(ImageError, match="at most 16 to 1"):
        read_image(Image.new("RGB", size))


def test_sixteen_to_one_is_not_too_thin() -> None:
    assert read_image(save(Image.new("RGB", (160, 10)), "PNG")).shape == (10, 160, 3)


def headers() -> dict[str, bytes]:
    """Headers of 16,000 x 16,000 pixels without anything to decode."""
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 16_000, 16_000, 8, 2, 0, 0, 0))
    sides = (16_000 - 1).to_bytes(3, "little") * 2
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + sides
    lossless = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 15_999 | 15_999 << 14) + bytes(5)
    lossy = b"VP8 " + struct.pack("<I", 20) + b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000) + bytes(10)
    webp = {name: b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
            for name, body in (("VP8X", extended), ("VP8L", lossless), ("VP8", lossy))}  # fmt: skip
    gif = b"GIF89a" + struct.pack("<HH", 16_000, 16_000) + bytes(3) + b","
    gif += struct.pack("<HHHH", 0, 0, 16_000, 16_000) + b"\0\x08\0;"
    bmp = (
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 16_000, 16_000, 1, 24, 0, *[0] * 5)
    )
    return {"PNG": png + chunk(b"IDAT", b""), "GIF": gif, "BMP": bmp, **webp}


@pytest.mark.parametrize("name", headers())
def test_a_picture_of_too_many_pixels_is_refused_from_its_header(name: str) -> None:
    with pytest.raises(ImageError, match=r"16000 x 16000 pixels; at most|more than 64,000,000 pixels") as caught:
        read_image(headers()[name])
    assert caught.value.reason == "too_large"


def test_a_tiff_with_large_tiles_is_refused() -> None:
    """Its decoder takes memory for a whole tile."""
    with pytest.raises(ImageError, match="tiles of 60000 x 60000"):
        read_image(tiff({**GREY, 322: 60_000, 323: 60_000, 324: 8, 325: 1}, b""))


def test_the_preview_in_a_raw_photo_is_not_taken_for_the_photo() -> None:
    with pytest.raises(ImageError, match="raw photos of cameras"):
        read_image(save(Image.new("RGB", (64, 64)), "TIFF", tiffinfo={254: 1}))


def test_large_texts_profiles_and_exif_do_not_make_a_picture_unreadable() -> None:
    assert read_image(FIELD / "ztxt.png").shape == (64, 96, 3)
    words, red = PngImagePlugin.PngInfo(), Image.new("RGB", (24, 16), (255, 0, 0))
    for number in range(3):
        words.add_itxt("workflow", "x" * 30_000_000 + str(number), zip=True)
        words.add_text("parameters", "y" * 2_000_000)
    exif = Image.Exif()
    exif[0x9286] = b"z" * 60_000
    made = {
        "text": save(red, "PNG", pnginfo=words),
        "profile": save(red, "PNG", icc_profile=b"p" * 2_000_000),
        "bomb": save(red, "PNG", icc_profile=bytes(2 * MAX_PROFILE)),
        "EXIF": save(red, "PNG", exif=exif),
        "broken text": save(red, "PNG")[:33] + chunk(b"zTXt", b"a\0\0no zlib") + save(red, "PNG")[33:],
        "JPEG": save(
            Image.new("RGB", (24, 16), (255, 0, 0)), "JPEG", exif=exif, icc_profile=b"p" * 500_000, quality=100
        ),
        "WebP": save(red, "WEBP", exif=exif, icc_profile=b"p" * 2_000_000, lossless=True),
    }
    for name, data in made.items():
        assert np.abs(read_image(data).astype(int) - (255, 0, 0)).max() <= 2, name


def test_files_that_are_no_photo_are_called_what_they_are() -> None:
    cases = {
        b"8BPS\0\1": "is a Photoshop file",
        b"%PDF-1.7": "is a PDF",
        b"\n<!DOCTYPE html><html>": "is a web page",
        b"": r"is empty \(0 bytes\)",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "is a pointer of Git LFS.*git lfs pull",
        b"<svg xmlns=": "is an SVG drawing",
        b"\xff\x0a\0": "is JPEG XL",
        b"\0\0\0\x0cjP  \r\n\x87\n": "is JPEG 2000",
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42": "is a video",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom": "is a raw photo of a camera",
        b"II*\0\x08\0\0\0\0\0": "is TIFF, but not an image that can be read",
        b"P6 20 20 255\n" + bytes(1200): "is not an image",  # a format of Pillow's that is not asked for
    }
    for data, words in cases.items():
        with pytest.raises(ImageError, match=words) as caught:
            read_image(data)
        assert caught.value.reason == "no_image"
        assert "JPEG" in str(caught.value)


def test_heic_without_its_library_is_called_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    with pytest.raises(ImageError, match=r"photo\.heic is a HEIC photo.*save it as JPEG, or install pillow-heif"):
        read_image(FIELD / "photo.heic")


def test_heic_is_read_where_its_library_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    assert read_image(FIELD / "photo.heic").shape == (240, 320, 3)
    many = heif.HeifFile()
    for colour in ((0, 0, 255), (255, 0, 0)):  # the second one is the photo
        many.add_from_pillow(Image.new("RGB", (64, 32), colour))
    buffer = io.BytesIO()
    many.save(buffer, primary_index=1)
    assert np.abs(read_image(buffer.getvalue()).astype(int) - (255, 0, 0)).max() <= 8
    heif.register_heif_opener()
    with pytest.raises(ImageError, match="at most 16 to 1"):
        read_image(save(Image.new("RGB", (1000, 16)), "HEIF"))


SIDES = (2000, 1200)
BYTES_A_PIXEL = 20  # 16 of them are Pillow's, for WebP
CHILD = """
import resource, sys
from PIL import Image
from cinemo.image import padded, read_image, scale_window
from scipy import ndimage

Image.init()
lines = open("/proc/self/status").read().splitlines()
size = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:"))
most = size + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for path in sys.argv[2:]:
    try:
        image = read_image(path)
        scale_window(image, 321 / image.shape[0], 320, 320), padded(image, 320, 512)
        print(path, image.shape[0] * image.shape[1])
    except ValueError as error:
        print(error)
    image = None
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit memory")
def test_no_picture_takes_more_than_twenty_bytes_a_pixel(tmp_path: Path) -> None:
    """In a process that can have no more. The thin picture of 3 kB took 10 GB."""
    red, exif = Image.new("RGB", SIDES, (200, 60, 40)), Image.Exif()
    exif[0x0112] = 6
    profile = Image.open(FIELD / "p3.png").info["icc_profile"]
    alpha = red.convert("RGBA")
    deep = Image.fromarray(np.full(SIDES[::-1], 3000, np.uint16))
    files = {
        "a.jpg": save(red, "JPEG", exif=exif, icc_profile=profile, progressive=True, subsampling=0),
        "b.png": save(alpha, "PNG", exif=exif, icc_profile=profile, compress_level=1),
        "c.png": save(deep, "PNG", compress_level=1),
        "d.webp": save(alpha, "WEBP", exif=exif, icc_profile=profile, method=0),
        "e.tif": save(Image.fromarray(np.full(SIDES[::-1], 0.5, np.float32)), "TIFF", compression="tiff_adobe_deflate"),
        "f.tif": save(red.convert("CMYK"), "TIFF", exif=exif),
        "g.gif": save(red, "GIF"),
        "h.png": save(red.convert("P"), "PNG", transparency=3),
        "thin.png": (FIELD / "thin_400k.png").read_bytes(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / name) for name in files]
    command = [sys.executable, "-c", CHILD, str(BYTES_A_PIXEL * SIDES[0] * SIDES[1]), *paths]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:-1] == [f"{path} {SIDES[0] * SIDES[1]}" for path in paths[:-1]]
    assert "thin.png is 400000 x 8 pixels; at most 16 to 1" in lines[-1]
