"""Pixels as they are seen: colour profiles in sRGB, values by the range of their type, upright, over white.

References are colorimetry by the standards' numbers (IEC 61966-2-1, Adobe RGB (1998)) and scikit-image's Lab.
"""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage.color import lab2xyz

from cinemo.image import ImageError, read_image
from tests.pictures import GREY, chunk, gamma, numbers, profile, save, tiff, xyz

# Of the primaries, adapted to D50: rows are X, Y, Z.
SRGB = np.array([[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
ADOBE = np.array([[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]])


def matrix_profile(primaries: np.ndarray, power: float) -> bytes:
    colours = {name: xyz(*primaries[:, place]) for place, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", {**colours, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma(power))})


def encode(light: np.ndarray) -> np.ndarray:
    """sRGB's 8-bit values of linear light."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def test_adobe_rgb_becomes_srgb() -> None:
    colour = (120, 160, 90)
    expected = encode(np.linalg.inv(SRGB) @ ADOBE @ (np.array(colour) / 255) ** 2.2)
    assert abs(expected[0] - colour[0]) > 10  # it is another colour
    for mode in ("RGB", "RGBA"):
        for kind in ("PNG", "TIFF", "WEBP", "JPEG"):
            if (kind, mode) == ("JPEG", "RGBA"):
                continue
            options: dict[str, Any] = (
                {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
            )
            picture = Image.new("RGB", (24, 16), colour).convert(mode)
            pixels = read_image(save(picture, kind, icc_profile=matrix_profile(ADOBE, 2.2), **options))
            assert np.abs(pixels - expected).max() <= 2, (kind, mode)


def test_a_palette_with_a_profile_becomes_srgb() -> None:
    picture = Image.new("RGB", (24, 16), (120, 160, 90)).convert("P", palette=Image.Palette.ADAPTIVE)
    expected = encode(np.linalg.inv(SRGB) @ ADOBE @ (np.array((120, 160, 90)) / 255) ** 2.2)
    assert np.abs(read_image(save(picture, icc_profile=matrix_profile(ADOBE, 2.2))) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_gray_profile_is_followed(mode: str) -> None:
    data = profile(b"GRAY", {b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": gamma(1)})
    if mode == "I;16":
        picture = Image.fromarray(np.full((16, 24), 64 * 257, np.uint16))
    else:
        picture = Image.new("L", (24, 16), 64).convert(mode)
    assert np.abs(read_image(save(picture, icc_profile=data)) - encode(np.array(64 / 255))).max() <= 1


def test_a_gray_picture_with_a_profile_of_colours_is_followed() -> None:
    pixels = read_image(save(Image.new("L", (24, 16), 64), icc_profile=matrix_profile(SRGB, 1.0)))
    assert np.abs(pixels - encode(np.array(64 / 255))).max() <= 1


def test_cmyk_becomes_what_its_profile_says() -> None:
    """Printed cyan is far from (0, 255, 255), which Pillow has without a profile. Here, of 16 colours of full inks."""
    labs = [(100.0, 0.0, 0.0)] * 16
    labs[8] = (55.0, -20.0, -40.0)
    table = b"".join(bytes([round(light * 2.55), round(a) + 128, round(b) + 128]) for light, a, b in labs)
    ramp = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + numbers(*np.eye(3).ravel())
    data = profile(b"CMYK", {b"A2B0": lut + ramp * 4 + table + ramp * 3}, b"Lab ", b"prtr")
    picture = Image.new("CMYK", (24, 16), (255, 0, 0, 0))
    expected = encode(np.linalg.inv(SRGB) @ lab2xyz([[labs[8]]], illuminant="D50")[0, 0])
    for kind in ("TIFF", "JPEG"):
        pixels = read_image(save(picture, kind, icc_profile=data, **({"quality": 100} if kind == "JPEG" else {})))
        assert np.abs(pixels.astype(int) - expected).max() <= 4, kind
    assert (read_image(save(picture, "TIFF")) == (0, 255, 255)).all()  # without one, as before


def test_srgb_s_own_profile_changes_no_pixel() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read_image(save(Image.fromarray(noise), icc_profile=own)), noise)


@pytest.mark.parametrize("data", [b"junk", bytes(200), matrix_profile(ADOBE, 2.2)[:200], profile(b"GRAY", {}),
                                  profile(b"CMYK", {}, b"Lab ")])  # fmt: skip
def test_a_profile_that_is_broken_or_of_other_colours_says_nothing(data: bytes) -> None:
    picture = Image.new("RGB", (24, 16), (120, 160, 90))
    for kind in ("PNG", "TIFF"):
        assert (read_image(save(picture, kind, icc_profile=data)) == (120, 160, 90)).all()


GREYS16 = np.linspace(0, 65535, 32 * 16).reshape(16, 32).round().astype(np.uint16)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [65535, 2000, 200])
def test_16_bit_greys_have_the_range_of_16_bits_however_dark(kind: str, top: int) -> None:
    values = (GREYS16.astype(float) * top / 65535).astype(np.uint16)
    pixels = read_image(save(Image.fromarray(values), kind))
    assert np.abs(pixels[..., 1] - values / 257).max() <= 0.5


def test_12_bit_greys_and_greys_in_which_0_is_white() -> None:
    values = (GREYS16 >> 4).ravel()
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1).astype(
        np.uint8
    )
    pixels = read_image(tiff({**GREY, 258: 12, 279: packed.size}, packed.tobytes()))
    assert np.abs(pixels[..., 0].ravel() - values / 4095 * 255).max() <= 0.5
    pixels = read_image(tiff({**GREY, 262: 0}, GREYS16.tobytes()))
    assert np.abs(pixels[..., 0] - (255 - GREYS16 / 257)).max() <= 0.5


def test_16_bit_colours_have_the_range_of_16_bits() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 24, 3), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 24, 16, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(read_image(png) - values / 257).max() <= 1


def test_floats_are_0_to_1_or_refused() -> None:
    values = np.linspace(0, 1, 32 * 16, dtype=np.float32).reshape(16, 32)
    assert np.abs(read_image(save(Image.fromarray(values), "TIFF"))[..., 0] - values * 255).max() <= 0.5
    for bad in (values * 255, values - 0.5, np.where(values > 0.5, np.nan, values)):
        with pytest.raises(ImageError, match=r"float values outside 0\.\.1; save it with 8 or 16 bits"):
            read_image(save(Image.fromarray(bad.astype(np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="signed or 32-bit integers"):
        read_image(save(Image.fromarray(np.full((16, 32), 200, np.int32)), "TIFF"))


def test_what_is_transparent_is_white_in_every_mode() -> None:
    half = np.zeros((16, 24, 2), np.uint8)
    half[:, 12:, 1] = 255  # black, to the left transparent
    clear = Image.fromarray(half, "LA")
    palette = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 12, axis=1).repeat(16, axis=0), "P")
    palette.putpalette([200, 0, 0, 0, 0, 0])
    deep = Image.fromarray(np.where(half[..., 1] > 0, 0, 4660).astype(np.uint16))
    made = {
        "LA": save(clear),
        "RGBA": save(clear.convert("RGBA")),
        "WebP": save(clear.convert("RGBA"), "WEBP", lossless=True, exact=True),
        "TIFF": save(clear.convert("RGBA"), "TIFF"),
        "palette": save(palette, transparency=bytes([0, 255])),
        "GIF": save(palette, "GIF", transparency=0),
        "key": save(
            Image.fromarray(np.where(half[..., 1:] > 0, 0, [7, 8, 9]).astype(np.uint8)), transparency=(7, 8, 9)
        ),
        "16 bits": save(deep, transparency=4660),
    }
    for name, data in made.items():
        pixels = read_image(data)
        assert (pixels[:, :12] == 255).all(), name
        assert (pixels[:, 12:] == 0).all(), name


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_once(kind: str, orientation: int) -> None:
    """Its top left corner is red; the file holds it as the camera was held (EXIF 2.3, table of Orientation)."""
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = (255, 0, 0)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_image(save(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
    assert pixels.shape == upright.shape
    assert np.abs(pixels[4:12, 4:20].astype(int) - (255, 0, 0)).max() < 30
    assert pixels[20:28, 28:44].max() < 30


def test_exif_data_that_cannot_be_read_say_nothing() -> None:
    for data in (
        b"Exif\0\0junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff",
    ):
        assert read_image(save(Image.new("RGB", (24, 16)), "JPEG", exif=data)).shape == (16, 24, 3)
