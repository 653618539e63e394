"""Opening photos, and preparing them as the official code does."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinemo.image import fit_pixels, read_image


def test_pixels_equal_the_official_preparation(golden: Any) -> None:
    case = golden("preprocess")
    pixels = fit_pixels(case["image_uint8"], *map(int, case["target_hw"]))
    assert np.abs(pixels.numpy() - case["pixels"]).max() <= 1e-5


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (200, 64), (321, 513)])
def test_any_photo_fits_any_size(size: tuple[int, int]) -> None:
    photo = np.full((97, 131, 3), 255, np.uint8)
    pixels = fit_pixels(photo, *size)
    assert pixels.shape == (1, 3, *size)
    assert float(pixels.min()) > 0.9999


def save(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = np.full((20, 30), 65535 if mode == "I;16" else 255, np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    rgb = read_image(save(picture, "TIFF"))
    assert rgb.shape == (20, 30, 3)
    assert rgb.min() >= 250


def test_what_is_transparent_is_white() -> None:
    assert (read_image(save(Image.new("RGBA", (20, 20), (255, 0, 0, 0)))) == 255).all()


def test_a_phone_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(save(Image.new("RGB", (40, 20)), "JPEG", exif=exif)).shape == (40, 20, 3)


def huge_png() -> bytes:
    """A PNG whose header says 60,000 x 60,000 and which has no pixels to decode."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_bad_images_get_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "huge.png").write_bytes(huge_png())
    whole = save(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (3, 400)).save(tmp_path / "thin.png")
    cases = {
        "missing.png": "does not exist",
        "empty.png": "is empty",
        "text.png": "not an image",
        "huge.png": "pixels",
        "half.jpg": "damaged",
        "thin.png": "at least 8",
        ".": "cannot be read",
    }
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("array", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3)), np.zeros((4, 20, 3), np.uint8)])
def test_arrays_of_another_kind_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pass uint8"):
        read_image(array)
