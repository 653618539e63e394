"""DCTInit against the official numbers, and its properties."""

from typing import Any

import numpy as np
import pytest
import torch

from cinemo.dctinit import dct_init


@pytest.mark.parametrize(("timestep", "expected"), [(975, "mixed"), (500, "mixed_mid")])
def test_equals_the_official_dctinit(golden: Any, timestep: int, expected: str) -> None:
    case = golden("dctinit")
    alpha_bar = case["alphas_cumprod"].astype(np.float64)[timestep]
    out = dct_init(
        torch.from_numpy(case["noise"]), torch.from_numpy(case["base_content"]), alpha_bar, float(case["percentage"])
    )
    assert np.abs(out.numpy() - case[expected]).max() <= 1e-10


def draw(size: tuple[int, int] = (10, 13)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 4, 7, *size, generator=generator, dtype=torch.float64)
    return noise, torch.randn(2, 4, 1, *size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_cutoff_zero_keeps_the_noise(transform: str) -> None:
    noise, image = draw()
    assert torch.allclose(dct_init(noise, image, 0.1, cutoff=0.0, transform=transform), noise, atol=1e-12)


@pytest.mark.parametrize("transform", ["dct", "fft"])
@pytest.mark.parametrize("size", [(10, 13), (9, 9)])
def test_a_full_cutoff_gives_the_noised_image(transform: str, size: tuple[int, int]) -> None:
    noise, image = draw(size)
    noised = 0.1**0.5 * image + 0.9**0.5 * noise
    out = dct_init(noise, image, 0.1, cutoff=1.0, transform=transform)
    if transform == "dct" or size == (9, 9):  # an even FFT axis keeps its unpaired highest frequency
        assert torch.allclose(out, noised, atol=1e-12)


def test_the_mean_of_every_frame_moves_towards_the_image() -> None:
    noise, image = draw((16, 24))
    image = image + 5
    for transform in ("dct", "fft"):
        out = dct_init(noise, image, 0.2, transform=transform)
        expected = (0.2**0.5 * image + 0.8**0.5 * noise).mean(dim=(-2, -1))
        assert torch.allclose(out.mean(dim=(-2, -1)), expected, atol=1e-10)


def test_keeps_the_noise_dtype() -> None:
    noise, image = draw()
    assert dct_init(noise.half(), image.half(), 0.1).dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"cutoff": 1.5}, "dct_cutoff 1.5"), ({"transform": "wavelet"}, "wavelet")],
)
def test_bad_settings_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dct_init(*draw(), 0.1, **arguments)


def test_an_image_of_another_shape_is_refused() -> None:
    noise, image = draw()
    with pytest.raises(ValueError, match="image_latents"):
        dct_init(noise, image[..., :-1], 0.1)
