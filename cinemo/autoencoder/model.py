"""AutoencoderMotion: clips -> motion-compensated latents, and back with the photo.

A frame is encoded as an affine field (the camera) and a smooth field (what moves by itself) that move the first frame,
and a coarse code of the rest. It is as sharp as the photo, at any size that is a multiple of the cell. After latent
flow diffusion (Ni et al., CVPR 2023), with a codec in place of trained networks: there is nothing to train.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from cinemo.autoencoder import channels as ch
from cinemo.autoencoder.optical_flow import affine_field, displacements, fit_affine, is_inside
from cinemo.autoencoder.warp import continued, upsample, warp

DEGREE = 3  # of the polynomial in time that the camera's path is fitted with
TREMOR = 0.15  # share of the camera's motion: a smaller departure from the polynomial is noise
SMALL = 0.12  # share of the clip's speed: a smaller component of the camera's motion is noise
ARM = 160.0  # pixels from the middle: the distance at which slopes are compared with offsets
FRAMES_AT_ONCE = 4  # frames decoded together; one of 320 x 512 takes 10 MB


class AutoencoderMotion(ModelMixin, ConfigMixin):
    """Encodes clips as displacements and a code; decodes them by moving the photo. Has no trained weights."""

    @register_to_config
    def __init__(
        self,
        cell: int = ch.CELL,
        latent_channels: int = ch.CHANNELS,
        scaling_factor: float = 1.0,
        code_refinements: int = 0,
    ) -> None:
        """code_refinements: how often a clip's code is corrected (channels.fit_code); 0 in earlier versions' models."""
        super().__init__()
        if (cell, latent_channels) != (ch.CELL, ch.CHANNELS):
            raise ValueError(
                f"cell {cell} and latent_channels {latent_channels} are not {ch.CELL} and {ch.CHANNELS}; the model is "
                "of another version of cinemo"
            )
        self.register_buffer("colours", ch.YCC.clone())  # a model directory has a file of weights for each part

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Latents of first frames: (B, 3, H, W) in [-1, 1] -> (B, C, h, w). Raises ValueError for other sizes."""
        check_size(pixels)
        pixels = pixels.float()
        code = ch.to_code(pixels) * ch.LOOK
        batch, _, rows, columns = code.shape
        place = ch.places(rows, columns, code.device).expand(batch, -1, -1, -1)
        alike = (ch.likeness(pixels) - 0.5) * ch.ALIKE
        pace, moves = (code.new_zeros(batch, size, rows, columns) for size in (1, ch.CHANNELS - ch.MOVES.start))
        return torch.cat([code, alike, pace, place, moves], 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of a clip, the first frame first: (N, 3, H, W) in [-1, 1] -> (N, C, h, w)."""
        first = self.encode_image(pixels[:1])
        if len(pixels) == 1:
            return first
        camera, local = split_motion(pixels.float())
        residuals = first.new_zeros(len(camera), ch.CHANNELS, *first.shape[-2:])
        residuals[:, ch.PACE.start :] = ch.motion_channels(camera, local)
        moved, refinements = self.decode_motion(residuals, pixels[0].float()), self.config["code_refinements"]
        residuals[:, ch.CODE] = ch.away_from_zero(
            ch.fit_code(pixels[1:] - moved, refinements) * ch.CHANGE, ch.CODE_ZONE
        )
        return torch.cat([first, first + residuals])

    @torch.no_grad()
    def decode(self, latents: Tensor, image: Tensor) -> Tensor:
        """Decode a whole clip: latents (N, C, h, w), first frame first, and the photo (3, H, W) -> (N, 3, H, W)."""
        residuals, image = (latents[1:] - latents[:1]).float(), image.float()
        moved = self.decode_motion(residuals, image)
        code = ch.towards_zero(residuals[:, ch.CODE], ch.CODE_ZONE) / ch.CHANGE
        if code.any():
            moved = moved + ch.from_code(code, *image.shape[-2:])
        return torch.cat([image[None], moved])

    def displacement(self, residuals: Tensor, height: int, width: int) -> Tensor:
        """Displacement of each pixel (dx, dy; see warp.py): residuals (F, C, h, w) -> (F, 2, H, W), pixels."""
        camera, local = split_fields(residuals)
        return total_displacement(camera, local, height, width)

    def decode_motion(self, residuals: Tensor, image: Tensor, some: slice = slice(None)) -> Tensor:
        """Move the photo (3, H, W) by the displacements of residuals (F, C, h, w), ignoring the code: (F, 3, H, W).

        some: the frames that are wanted, of the F; their displacements depend on all.
        """
        height, width = image.shape[-2:]
        canvas, top, left = continued(image)
        frames = []
        camera, local = (fields[some] for fields in split_fields(residuals))
        for fit, field in zip(camera.split(FRAMES_AT_ONCE), local.split(FRAMES_AT_ONCE), strict=True):
            frames.append(warp(canvas[None], total_displacement(fit, field, height, width), top=top, left=left))
        return torch.cat(frames)


def check_size(pixels: Tensor) -> None:
    """Raise ValueError unless H and W of pictures (..., H, W) are multiples of CELL, and at least two cells."""
    height, width = pixels.shape[-2:]
    if height % ch.CELL or width % ch.CELL or min(height, width) < 2 * ch.CELL:
        raise ValueError(f"size {height} x {width} is not a multiple of {ch.CELL} pixels from {2 * ch.CELL} on")


def split_fields(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals (F, C, h, w) -> the camera's affine fields (F, 3, 2) and the local displacement (F, 2, 2h, 2w)."""
    camera, local = ch.motion_fields(residuals)
    numbers = torch.arange(1, len(camera) + 1, device=camera.device).view(-1, 1, 1)
    speed = ch.decode_speed(residuals)
    return without_small_parts(steady(fit_cells(camera)), speed) * numbers, local


def total_displacement(fit: Tensor, local: Tensor, height: int, width: int) -> Tensor:
    """Sum of an affine field (F, 3, 2) and a local displacement (F, 2, 2h, 2w) at each pixel: (F, 2, H, W)."""
    total = affine_field(fit, height, width)
    return total + upsample(local, height, width) if local.any() else total


def fit_cells(camera: Tensor) -> Tensor:
    """Fit affine fields (F, 3, 2), in pixels, to fields of cells (F, 2, h, w) by least squares."""
    rows, columns = camera.shape[-2:]
    terms = ch.places(rows, columns, camera.device).flatten(1).T * ch.PLACE
    terms = torch.cat([torch.ones_like(terms[:, :1]), terms], 1)
    return torch.linalg.pinv(terms) @ camera.flatten(2).transpose(1, 2)


def steady(fit: Tensor) -> Tensor:
    """Remove small tremor from a camera's path (F, 3, 2): keep a polynomial in time, and large departures from it.

    Most of a hand-held camera's motion departs from the polynomial, and is kept; a network's noise is a small share.
    """
    time = torch.linspace(-1, 1, len(fit), device=fit.device)
    powers = torch.stack([time**power for power in range(min(DEGREE, len(fit) - 1) + 1)], 1)
    smooth = (powers @ torch.linalg.pinv(powers) @ fit.flatten(1)).view_as(fit)
    rest = fit - smooth
    size = torch.tensor([1.0, ARM, ARM], device=fit.device).view(1, 3, 1)
    share = (rest * size).square().sum() / (fit * size).square().sum().clamp(min=1e-9)
    return smooth + rest * (share / (share + TREMOR**2))


def without_small_parts(fit: Tensor, speed: Tensor) -> Tensor:
    """Remove components of affine fields (F, 3, 2) that are small for the clip's speed, such as the slight turn and
    zoom that a network adds to a pan, or a camera motion under drifting clouds."""
    offset, along_x, along_y = fit.unbind(1)
    parts = torch.stack(
        [
            *offset.T,
            *((along_x[:, 0] + sign * along_y[:, 1]) / 2 * ARM for sign in (1, -1)),  # zoom, stretch
            *((along_x[:, 1] + sign * along_y[:, 0]) / 2 * ARM for sign in (1, -1)),  # shear, turn
        ]
    )  # (6, F), pixels a frame
    share = parts.square().mean(dim=1, keepdim=True).sqrt() / speed
    right, down, zoom, stretch, shear, turn = parts * (share**4 / (share**4 + SMALL**4))
    slopes = [zoom + stretch, shear + turn, shear - turn, zoom - stretch]
    return torch.stack([right, down, *(slope / ARM for slope in slopes)], 1).view_as(fit)


def split_motion(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """A clip (N, 3, H, W) -> the camera's displacement / frame number (F, 2, h, w) and the remaining, local one
    (F, 2, 2h, 2w), pixels."""
    grey = F.avg_pool2d(pixels.mean(1, keepdim=True) / 2 + 0.5, 2)
    field = 2 * F.interpolate(displacements(grey), scale_factor=2, mode="bilinear")
    height, width = field.shape[-2:]
    small = F.avg_pool2d(field, 8)
    inside = F.avg_pool2d(is_inside(field)[:, None].float(), 8)[:, 0] > 0.9
    numbers = torch.arange(1, len(field) + 1, device=field.device).view(-1, 1, 1)
    fit = fit_affine(small, inside)
    fit = fit / torch.tensor([1.0, 8.0, 8.0], device=fit.device).view(1, 3, 1)  # slopes are per 8 pixels
    fit = steady(fit / numbers)

    def camera_and_rest(fit: Tensor) -> tuple[Tensor, Tensor]:
        camera = affine_field(fit, height, width)
        rest = (field - camera * numbers[..., None]) * is_inside(field)[:, None]
        return F.avg_pool2d(camera, ch.CELL), F.avg_pool2d(rest, ch.CELL // ch.LOCAL)

    return camera_and_rest(without_small_parts(fit, ch.speed_of(*camera_and_rest(fit))))
