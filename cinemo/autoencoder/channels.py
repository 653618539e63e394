"""The channels of motion-compensated latents: what each holds, and how it is scaled.

A cell of a later frame holds how the first frame moved there, and what else has changed. In the first frame the same
channels hold what the picture looks like, where the cell is, and how its SSIM falls as it moves. So a motion residual
(paper, Algorithm 1) is the motion itself, and in a pan it is the same in every cell.

| channels | a motion residual | the first frame |
|---|---|---|
| code, 24 | what displacement does not explain: luma of 8 x 8 pixels, chroma of 16 x 16 | the picture, as coarsely |
| likeness, 4 | nothing | SSIM of the cell with itself, moved by 1, 3, 9, 27 pixels |
| pace, 1 | logarithm of the clip's speed | nothing |
| camera, 2 | displacement / frame number / speed, of an affine field | the cell's place |
| local, 8 | displacement of 16 x 16 pixels, without the camera's, / (8 speed) | nothing |
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cinemo.autoencoder.warp import pixel_grid

CELL = 32  # pixels per side
LUMA, CHROMA, LOCAL = 4, 2, 2  # parts a cell's side is divided into
SHIFTS = (1, 3, 9, 27)  # pixels
CODE = slice(0, LUMA**2 + 2 * CHROMA**2)
LIKENESS = slice(CODE.stop, CODE.stop + len(SHIFTS))
PACE = slice(LIKENESS.stop, LIKENESS.stop + 1)
CAMERA = slice(PACE.stop, PACE.stop + 2)
MOVES = slice(CAMERA.stop, CAMERA.stop + 2 * LOCAL**2)
CHANNELS = MOVES.stop

# Scales of the channels, chosen for noise of deviation 1. A network sees the first frame through the noise of the
# residuals, so the first frame's values are larger.
LOOK, CHANGE = 2.0, 16.0  # of the code, in the first frame and in a residual; pixels are in [-1, 1]
ALIKE = 4.0  # of the likeness
SHAPE = 3.0  # value of a displacement as large as the clip's speed
LOG_SPEED = 1.5  # of the pace
# Pixels a frame. A faster clip has larger displacement values; a network's larger speed would leave nothing to see.
LEAST_SPEED, TOP_SPEED = 0.05, 24.0
FRAMES = 8.0  # a local displacement is divided by how far the clip's speed goes in this many frames
PLACE = 80.0  # pixels: unit of a cell's place
# Dead zones: smaller values of a network are noise.
CODE_ZONE, MOVE_ZONE = 0.8, 0.5
LEAST = 0.2  # of a dead zone: smaller values of a real clip are set to zero

YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def to_code(pixels: Tensor) -> Tensor:
    """Means of luma and chroma over parts of each cell: (N, 3, H, W) -> (N, 24, h, w)."""
    ycc = torch.einsum("oc,nchw->nohw", YCC.to(pixels), pixels)
    luma = F.pixel_unshuffle(F.avg_pool2d(ycc[:, :1], CELL // LUMA), LUMA)
    return torch.cat([luma, F.pixel_unshuffle(F.avg_pool2d(ycc[:, 1:], CELL // CHROMA), CHROMA)], 1)


def fit_code(pixels: Tensor, refinements: int) -> Tensor:
    """Encode like to_code, then correct the code `refinements` times by encoding what from_code still lacks."""
    code = to_code(pixels)
    for _ in range(refinements):
        code = code + to_code(pixels - from_code(code, *pixels.shape[-2:]))
    return code


def from_code(code: Tensor, height: int, width: int) -> Tensor:
    """Make a smooth picture that has nearly these means: (N, 24, h, w) -> (N, 3, H, W)."""
    parts = F.pixel_shuffle(code[:, : LUMA**2], LUMA), F.pixel_shuffle(code[:, LUMA**2 :], CHROMA)
    ycc = torch.cat([F.interpolate(p, (height, width), mode="bicubic", align_corners=False) for p in parts], 1)
    return torch.einsum("oc,nchw->nohw", torch.linalg.inv(YCC).to(code), ycc)


def places(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Position of each cell's middle relative to the picture's, right and down: (2, h, w), in units of PLACE."""
    x, y = pixel_grid(rows, columns, device)
    return torch.stack([x - columns / 2, y - rows / 2]) * (CELL / PLACE)


def likeness(pixels: Tensor) -> Tensor:
    """SSIM of each cell with the picture shifted by SHIFTS pixels: (N, 3, H, W) in [-1, 1] -> (N, 4, h, w).

    Computed on luma in 7 x 7 windows, averaged over shifts to the right and down. It tells a network which speed gives
    which motion bucket.
    """
    luma = torch.einsum("c,nchw->nhw", YCC[0].to(pixels), pixels)[:, None]
    size = luma.shape[-2:]

    def box(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 7, stride=1, padding=3, count_include_pad=False)

    mean = box(luma)
    variance = (box(luma * luma) - mean * mean).clamp(min=0)
    maps = []
    for shift in SHIFTS:
        for pad in ((0, shift, 0, 0), (0, 0, 0, shift)):
            there, mean2, var2 = (
                F.pad(values, pad, mode="replicate")[..., -size[0] :, -size[1] :] for values in (luma, mean, variance)
            )
            covariance = box(luma * there) - mean * mean2
            c1, c2 = (2 * 0.01) ** 2, (2 * 0.03) ** 2
            ssim = (2 * (mean + 1) * (mean2 + 1) + c1) * (2 * covariance + c2)
            maps.append(ssim / (((mean + 1) ** 2 + (mean2 + 1) ** 2 + c1) * (variance + var2 + c2)))
    alike = torch.cat(maps, 1).unflatten(1, (len(SHIFTS), 2)).mean(2)
    return F.avg_pool2d(alike, CELL)


def speed_of(camera: Tensor, local: Tensor) -> Tensor:
    """Typical speed of what moves, anywhere in the frame, in pixels a frame: a scalar.

    camera: displacement / frame number, (F, 2, h, w). local: displacement, (F, 2, 2h, 2w).
    """
    squares = []
    for field in (camera, local / FRAMES):
        squared = field.square().sum(1)
        squares.append(squared.square().sum() / squared.sum().clamp(min=1e-12))
    return torch.stack(squares).sum().sqrt().clamp(LEAST_SPEED, TOP_SPEED)


def motion_channels(camera: Tensor, local: Tensor, speed: Tensor | None = None) -> Tensor:
    """Pace, camera and local channels of a motion residual: (F, 11, h, w). Arguments as in speed_of."""
    speed = speed_of(camera, local) if speed is None else speed
    pace = ((speed.log() - 1) * LOG_SPEED).expand(len(camera), 1, *camera.shape[-2:])
    moves = F.pixel_unshuffle(away_from_zero(local / speed * (SHAPE / FRAMES), MOVE_ZONE, dim=1), LOCAL)
    return torch.cat([pace, camera / speed * SHAPE, moves], 1)


def decode_speed(residuals: Tensor) -> Tensor:
    """Decode the clip's speed, pixels a frame, from residuals (F, C, h, w)."""
    return (residuals[:, PACE].mean() / LOG_SPEED + 1).exp().clamp(LEAST_SPEED, TOP_SPEED)


def motion_fields(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Decode residuals (F, C, h, w) to camera displacement / frame number, and local displacement; pixels."""
    speed = decode_speed(residuals)
    local = towards_zero(soften(F.pixel_shuffle(residuals[:, MOVES], LOCAL)), MOVE_ZONE, dim=1)
    return residuals[:, CAMERA] / SHAPE * speed, local * (speed * FRAMES / SHAPE)


def soften(local: Tensor) -> Tensor:
    """Smooth displacements (F, 2, 2h, 2w) in space and time by binomial means over 3 neighbours.

    Applied before the dead zone, which then need only exceed the remaining noise.
    """
    kernel = torch.tensor([1.0, 2.0, 1.0], device=local.device) / 4
    kernel = (kernel.view(3, 1, 1) * kernel.view(1, 3, 1) * kernel).view(1, 1, 3, 3, 3)
    padded = F.pad(local.transpose(0, 1)[:, None], (1, 1, 1, 1, 1, 1), mode="replicate")
    return F.conv3d(padded, kernel)[:, 0].transpose(0, 1)


def away_from_zero(values: Tensor, zone: float, dim: int | None = None) -> Tensor:
    """Lengthen values by `zone`, the inverse of towards_zero; values shorter than LEAST * zone become zero.

    dim: the axis of vectors; None takes each value by itself.
    """
    length = values.abs() if dim is None else values.norm(dim=dim, keepdim=True)
    return torch.where(length > zone * LEAST, values * (1 + zone / length.clamp(min=1e-6)), torch.zeros_like(values))


def towards_zero(values: Tensor, zone: float, dim: int | None = None) -> Tensor:
    """Shorten values by `zone`, at most to zero (soft thresholding, Donoho 1995)."""
    length = values.abs() if dim is None else values.norm(dim=dim, keepdim=True)
    return values * (1 - zone / length.clamp(min=zone))
