"""Displacements of clips whose motion is known."""

import numpy as np
import pytest
import torch

from cinemo.autoencoder.optical_flow import affine_field, displacements, fit_affine, lucas_kanade
from cinemo.autoencoder.warp import continued, pixel_grid, warp
from cinemo.image import fit_pixels
from cinemo.synthetic.images import photo


def grey_photo(height: int = 160, width: int = 256) -> torch.Tensor:
    return fit_pixels(photo("coffee.png"), height, width).mean(1, keepdim=True) / 2 + 0.5


@pytest.mark.parametrize("moved", [(0.4, 0.0), (3.0, -2.0), (-12.0, 5.0)])
def test_a_shift_is_found_to_a_tenth_of_a_pixel(moved):
    picture = grey_photo()
    field = torch.tensor(moved).view(1, 2, 1, 1).expand(1, 2, 160, 256)
    found = lucas_kanade(picture, warp(picture, field))
    inner = found[..., 24:-24, 24:-24]
    assert torch.allclose(inner.flatten(2).median(2).values[0], torch.tensor(moved), atol=0.1)


def test_an_affine_fit_heeds_most_of_the_field_and_not_the_rest():
    fit = torch.tensor([[[3.0, -1.0], [0.02, 0.01], [-0.01, 0.02]]])
    field = affine_field(fit, 40, 60)
    field[..., 10:20, 10:25] += 30.0  # an object
    found = fit_affine(field, torch.ones(1, 40, 60, dtype=torch.bool))
    assert torch.allclose(found, fit, atol=0.05)


@pytest.mark.parametrize("speed", [0.5, 6.0])
def test_a_pan_is_followed_over_a_whole_clip(speed):
    picture = grey_photo()
    canvas, top, left = continued(picture[0].expand(3, -1, -1))
    numbers = torch.arange(8).view(-1, 1, 1, 1) * torch.tensor([speed, 0.0]).view(1, 2, 1, 1)
    clip = warp(canvas[None], numbers.expand(-1, -1, 160, 256).float(), "bilinear", top, left)[:, :1]
    found = displacements(clip)
    x, _ = pixel_grid(160, 256)
    for number in (1, 4, 7):
        seen = (x + number * speed < 250) & (x > 6)
        error = (found[number - 1, 0] - number * speed)[seen].abs().median()
        assert error < 0.3, (number, float(error))
    assert np.isfinite(found.numpy()).all()
