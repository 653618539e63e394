"""Move a picture by a displacement field, and upsample fields of cells to pixels.

A displacement (dx, dy), in pixels, leads from an output pixel to its content's place in the picture that is moved.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.75  # width of the continuation on each side, as a share of the picture's size
BLURS = ((4, 0.02, 0.10), (16, 0.08, 0.35))  # block size in pixels; distances, in heights, where it begins and is full


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates x and y of pixel centres: twice (H, W), in pixels from the upper left corner."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
    )
    return x, y


def sample(picture: Tensor, x: Tensor, y: Tensor, mode: str = "bicubic") -> Tensor:
    """Sample (1 or N, C, H, W) at x, y (N, h, w), in pixels; border values are repeated beyond the border."""
    height, width = picture.shape[-2:]
    grid = torch.stack([x * 2 / width - 1, y * 2 / height - 1], dim=-1)
    picture = picture.expand(len(grid), -1, -1, -1)
    return F.grid_sample(picture, grid, mode=mode, padding_mode="border", align_corners=False)


def warp(picture: Tensor, displacement: Tensor, mode: str = "bicubic", top: float = 0.0, left: float = 0.0) -> Tensor:
    """Move (1 or N, C, H, W) by (N, 2, h, w): out(p) = picture(p + displacement + (left, top))."""
    height, width = displacement.shape[-2:]
    x, y = pixel_grid(height, width, displacement.device)
    return sample(picture, x + displacement[:, 0] + left, y + displacement[:, 1] + top, mode)


def continued(image: Tensor) -> tuple[Tensor, int, int]:
    """Continue an image (3, H, W) beyond its borders, for a moving camera: (3, H + 2 top, W + 2 left), top, left.

    The picture is mirrored, and blurred more the farther from its border, so that colours and light continue but no
    second copy of a thing is seen.
    """
    height, width = image.shape[-2:]
    top, left = int(height * MARGIN), int(width * MARGIN)
    canvas = F.pad(image[None], (left, left, top, top), mode="reflect")
    x, y = pixel_grid(height + 2 * top, width + 2 * left, image.device)
    across = (left - x).clamp(min=0) + (x - left - width).clamp(min=0)
    down = (top - y).clamp(min=0) + (y - top - height).clamp(min=0)
    distance = torch.hypot(across, down) / height
    out = canvas
    for size, begin, end in BLURS:
        small = F.avg_pool2d(canvas, size, ceil_mode=True)
        small = F.avg_pool2d(F.pad(small, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        soft = F.interpolate(small, scale_factor=size, mode="bilinear", align_corners=False)
        share = ((distance - begin) / (end - begin)).clamp(0, 1)
        share = share * share * (3 - 2 * share)
        out = out + share * (soft[..., : canvas.shape[-2], : canvas.shape[-1]] - out)
    return out[0], top, left


def upsample(field: Tensor, height: int, width: int) -> Tensor:
    """Upsample (N, C, h, w) to (N, C, H, W), whole multiples: bicubic inside, linear beyond the outermost centres.

    A linear field stays linear: PyTorch's plain bicubic (a = -0.75) bends it, the antialiased one (a = -0.5) does not.
    """
    rows, columns = height // field.shape[2], width // field.shape[3]
    for dim in (2, 3):
        count = field.shape[dim]
        if count == 1:
            field = torch.cat([field] * 5, dim)
            continue
        first, second, before, last = (field.select(dim, i).unsqueeze(dim) for i in (0, 1, count - 2, count - 1))
        field = torch.cat(
            [3 * first - 2 * second, 2 * first - second, field, 2 * last - before, 3 * last - 2 * before], dim
        )
    large = F.interpolate(field, scale_factor=(rows, columns), mode="bicubic", align_corners=False, antialias=True)
    return large[..., 2 * rows : 2 * rows + height, 2 * columns : 2 * columns + width]
