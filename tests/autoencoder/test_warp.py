"""Moving and enlarging: what is linear stays linear, what is not seen is continued."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cinemo.autoencoder.warp import MARGIN, continued, pixel_grid, upsample, warp


def test_whole_pixels_are_moved_exactly():
    picture = torch.rand(1, 3, 40, 60)
    moved = warp(picture, torch.tensor([3.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 40, 60))
    assert torch.allclose(moved[0, :, 5:35, 5:50], picture[0, :, 3:33, 8:53], atol=1e-5)


def test_fractions_of_pixels_agree_with_scipy():
    picture = torch.rand(1, 1, 30, 30)
    displacement = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1).expand(1, 2, 30, 30)
    moved = warp(picture, displacement, mode="bilinear")[0, 0, 5:25, 5:25].numpy()
    y, x = np.mgrid[5:25, 5:25]
    expected = map_coordinates(picture[0, 0].numpy(), [y + 0.6, x + 0.3], order=1)
    assert np.abs(moved - expected).max() < 1e-5


@pytest.mark.parametrize("size", [(4, 6), (1, 5), (10, 16)])
def test_a_linear_field_stays_linear_when_enlarged(size):
    def plane(rows: int, columns: int, step: float) -> torch.Tensor:
        x, y = pixel_grid(rows, columns)
        return (0.5 * x * step + (0.25 * y * step if size[0] > 1 else 0.0))[None, None]

    large = upsample(plane(*size, 16.0), size[0] * 16, size[1] * 16)
    assert torch.allclose(large, plane(size[0] * 16, size[1] * 16, 1.0), atol=1e-3)


def test_an_image_is_continued_by_itself_and_softer_the_farther():
    image = torch.rand(3, 96, 160)
    canvas, top, left = continued(image)
    assert (top, left) == (int(96 * MARGIN), int(160 * MARGIN))
    assert torch.equal(canvas[:, top : top + 96, left : left + 160], image)
    near, far = canvas[:, top - 3 : top, left : left + 160], canvas[:, :20, left : left + 160]
    assert far.std() < near.std() / 3
    assert abs(float(canvas.mean() - image.mean())) < 0.05
