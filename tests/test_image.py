"""Opening photos, and preparing them as the official code does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cinemo.image import cut_away, fit_pixels, fitting_size, read_image
from tests.pictures import save


def test_pixels_equal_the_official_preparation(golden: Any) -> None:
    case = golden("preprocess")
    pixels = fit_pixels(case["image_uint8"], *map(int, case["target_hw"]))
    assert np.abs(pixels.numpy() - case["pixels"]).max() <= 1e-5


def test_pixels_are_cut_before_they_are_scaled_and_equal_torch_s() -> None:
    """Of a strip of 16 to 1, all but a window is never scaled."""
    random = np.random.default_rng(0)
    for photo, size in [
        ((97, 131), (64, 200)),
        ((40, 640), (320, 512)),
        ((640, 40), (64, 96)),
        ((300, 451), (320, 512)),
    ]:
        image = random.integers(0, 256, (*photo, 3), np.uint8)
        scale = max((side + 1) / own for side, own in zip(size, photo, strict=True))
        whole = F.interpolate(
            torch.tensor(image).permute(2, 0, 1)[None].float() / 255.0, scale_factor=scale, mode="bilinear",
            align_corners=False, recompute_scale_factor=False,
        )  # fmt: skip
        top, left = (round((full - side) / 2) for full, side in zip(whole.shape[-2:], size, strict=True))
        expected = whole[..., top : top + size[0], left : left + size[1]] * 2 - 1
        assert torch.allclose(fit_pixels(image, *size), expected, rtol=0, atol=2e-6)


def test_a_padded_photo_is_whole_between_bars_of_its_borders() -> None:
    photo = np.full((400, 200, 3), (200, 0, 0), np.uint8)
    photo[:40] = (0, 200, 0)
    photo[:, :10] = photo[:, -10:] = (0, 0, 200)
    frame = fit_pixels(photo, 320, 512, fit="pad")[0].permute(1, 2, 0).numpy() * 127.5 + 127.5
    left = (512 - 160) // 2
    inner = np.asarray(Image.fromarray(photo).resize((160, 320), Image.Resampling.BILINEAR))
    assert np.abs(frame[:, left : left + 160] - inner).mean() < 3
    assert np.abs(frame[100:, : left - 30] - (0, 0, 200)).max() < 20
    assert np.abs(frame[100:, left + 190 :] - (0, 0, 200)).max() < 20
    same = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert np.abs(fit_pixels(same, 64, 96, fit="pad")[0].permute(1, 2, 0).numpy() * 127.5 + 127.5 - same).max() < 1e-3
    with pytest.raises(ValueError, match="fit 'stretch' is unknown; use 'crop' or 'pad'"):
        fit_pixels(photo, 64, 96, fit="stretch")


def test_the_fitting_size_is_the_large_one_of_the_nearest_aspect() -> None:
    sizes = [(320, 512), (512, 320), (416, 416), (192, 320)]
    photos = {(900, 600): (512, 320), (600, 900): (320, 512), (500, 480): (416, 416), (100, 1600): (320, 512)}
    assert {photo: fitting_size(*photo, sizes) for photo in photos} == photos
    assert cut_away(900, 600, 320, 512) == pytest.approx(1 - (600 * 320 / 512) / 900)
    assert cut_away(320, 512, 320, 512) == cut_away(640, 1024, 320, 512) == 0


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (200, 64), (321, 513)])
def test_any_photo_fits_any_size(size: tuple[int, int]) -> None:
    photo = np.full((97, 131, 3), 255, np.uint8)
    pixels = fit_pixels(photo, *size)
    assert pixels.shape == (1, 3, *size)
    assert float(pixels.min()) > 0.9999


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = np.full((20, 30), 65535 if mode == "I;16" else 255, np.uint16 if mode == "I;16" else np.uint8)
    picture = Image.fromarray(grey) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    rgb = read_image(save(picture, "TIFF"))
    assert rgb.shape == (20, 30, 3)
    assert rgb.min() >= 250


def test_bad_images_get_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    whole = save(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (3, 400)).save(tmp_path / "thin.png")
    cases = {
        "missing.png": "does not exist",
        "empty.png": "is empty",
        "text.png": "not an image",
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
