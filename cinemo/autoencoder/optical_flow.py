"""Displacements of real clips: where the content of each frame lies in the first frame.

Pyramidal Lucas-Kanade (Lucas and Kanade 1981; Bouguet 2001) on tensors, all pairs of frames at once, and a robust
affine fit of what the camera does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cinemo.autoencoder.warp import pixel_grid, sample, warp

LEVELS, ROUNDS = 5, 4
WINDOW, SMOOTH = 3, 1  # pixels: reach of the filters for products and for displacements
FIT_ROUNDS = 4


def blur(values: Tensor, reach: int) -> Tensor:
    """Apply two box filters of 2 reach + 1 pixels, nearly a Gaussian: (N, C, H, W); border values are repeated.

    Running sums take a tenth of the time of a one-channel convolution.
    """
    width = 2 * reach + 1
    for _ in range(2):
        sums = F.pad(values, (reach + 1, reach, 0, 0), mode="replicate").cumsum(-1)
        values = sums[..., width:] - sums[..., :-width]
        sums = F.pad(values, (0, 0, reach + 1, reach), mode="replicate").cumsum(-2)
        values = (sums[..., width:, :] - sums[..., :-width, :]) / width**2
    return values


def gradient(values: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y of (N, 1, H, W)."""
    across, down = F.pad(values, (1, 1, 0, 0), mode="replicate"), F.pad(values, (0, 0, 1, 1), mode="replicate")
    return (across[..., 2:] - across[..., :-2]) / 2, (down[..., 2:, :] - down[..., :-2, :]) / 2


def lucas_kanade(
    moving: Tensor, fixed: Tensor, start: Tensor | None = None, levels: int = LEVELS, rounds: int = ROUNDS
) -> Tensor:
    """Displacement (N, 2, H, W) in pixels with moving(p + displacement) = fixed(p).

    moving, fixed: grey (N, 1, H, W) in [0, 1]. start: a first guess, of the same shape as the result.
    """
    pairs = [(moving, fixed)]
    while len(pairs) < levels and min(pairs[-1][0].shape[-2:]) >= 20:
        pairs.append((F.avg_pool2d(pairs[-1][0], 2), F.avg_pool2d(pairs[-1][1], 2)))
    size = pairs[-1][1].shape[-2:]
    if start is None:
        displacement = torch.zeros(len(fixed), 2, *size, device=fixed.device)
    else:
        displacement = F.interpolate(start, size=size, mode="area") / 2 ** (len(pairs) - 1)
    for source, target in reversed(pairs):
        if displacement.shape[-2:] != target.shape[-2:]:
            displacement = 2 * F.interpolate(displacement, size=target.shape[-2:], mode="bilinear")
        for _ in range(rounds):
            moved = warp(source, displacement, "bilinear")
            gx, gy = gradient(moved)
            error = target - moved
            products = torch.cat([gx * gx, gx * gy, gy * gy, gx * error, gy * error], 1)
            a, b, c, p, q = blur(products, WINDOW).split(1, 1)
            a, c = a + 1e-4, c + 1e-4
            scale = 1 / (a * c - b * b)
            step = torch.cat([(c * p - b * q) * scale, (a * q - b * p) * scale], 1)
            displacement = blur(displacement + step.clamp(-2, 2), SMOOTH)
    return displacement


def fit_affine(field: Tensor, inside: Tensor) -> Tensor:
    """Fit affine fields (N, 3, 2) robustly to (N, 2, H, W): offset, slope along x, slope along y.

    Coordinates are pixels from the middle. Iterated least squares, each time with less weight for outliers; only where
    `inside` (N, H, W) is true.
    """
    count, _, height, width = field.shape
    terms = affine_terms(height, width, field.device)
    values = field.flatten(2).transpose(1, 2)  # (N, H W, 2)
    trusted = inside.flatten(1).float()[..., None] + 1e-6
    weights = trusted
    for _ in range(FIT_ROUNDS):
        weighted = (terms * weights).transpose(1, 2)
        fit = torch.linalg.solve(weighted @ terms.expand(count, -1, -1), weighted @ values)
        error = (values - terms @ fit).norm(dim=2, keepdim=True)
        middle = torch.where(trusted > 0.5, error, torch.nan).nanmedian(dim=1, keepdim=True).values.nan_to_num(1.0)
        weights = trusted / (1 + (error / (middle + 1e-3)) ** 2)
    return fit


def affine_terms(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """1, x and y of each pixel, from the middle: (1, H W, 3)."""
    x, y = pixel_grid(height, width, device)
    return torch.stack([torch.ones_like(x), x - width / 2, y - height / 2], -1).view(1, -1, 3)


def affine_field(fit: Tensor, height: int, width: int) -> Tensor:
    """Affine fields as displacements: (N, 3, 2) -> (N, 2, H, W)."""
    return (affine_terms(height, width, fit.device) @ fit).transpose(1, 2).unflatten(2, (height, width))


def is_inside(field: Tensor) -> Tensor:
    """Whether each pixel's content is within the first frame: displacements (N, 2, H, W) -> bool (N, H, W)."""
    height, width = field.shape[-2:]
    x, y = pixel_grid(height, width, field.device)
    x, y = x + field[:, 0], y + field[:, 1]
    return (x > 0) & (x < width) & (y > 0) & (y < height)


def displacements(grey: Tensor) -> Tensor:
    """Displacements of each later frame from the first: (N, 1, H, W) in [0, 1] -> (N - 1, 2, H, W), pixels.

    Estimated between neighbours, which differ little, then chained and refined against the first frame. What the first
    frame does not show gets the camera's displacement.
    """
    steps = lucas_kanade(grey[:-1], grey[1:])
    camera = fit_affine(steps, torch.ones_like(steps[:, 0], dtype=torch.bool))
    height, width = grey.shape[-2:]
    linear = torch.eye(2, device=grey.device)
    x, y = pixel_grid(height, width, grey.device)
    total: list[Tensor] = []
    slope, offset = linear.clone(), torch.zeros(2, device=grey.device)
    for index, step in enumerate(steps):
        # The camera's motion, composed exactly: p -> slope p + offset, from this frame to the first.
        step_slope, step_offset = linear + camera[index, 1:].T, camera[index, 0]
        offset, slope = slope @ step_offset + offset, slope @ step_slope
        fit = torch.cat([offset[None], (slope - linear).T])[None]
        all_camera = affine_field(fit, height, width)
        if not total:
            total.append(step[None])
            continue
        chained = step[None] + sample(total[-1], x[None] + step[0], y[None] + step[1], "bilinear")
        there_x, there_y = x + step[0], y + step[1]
        seen = (there_x > 0) & (there_x < width) & (there_y > 0) & (there_y < height)
        total.append(torch.where(seen, chained, all_camera))
    start = torch.cat(total)
    aligned = lucas_kanade(grey[:1].expand(len(start), -1, -1, -1), grey[1:], start, levels=2, rounds=3)
    return torch.where(is_inside(start)[:, None], aligned, start)
