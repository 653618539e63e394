"""Previews of an animation that is not finished: a small picture of its last frame, a few kB of WebP."""

import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cinemo import provenance
from cinemo.latents import needs_image, to_frames

LONGEST_SIDE = 256  # pixels of a preview


@torch.no_grad()
def last_frame(vae: Any, image_latents: Tensor, residuals: Tensor, pixels: Tensor) -> np.ndarray:
    """Roughly decode the last frame of a clip: uint8 (H, W, 3), or (h, w, 3) where decoding would be expensive.

    image_latents: (1, C, 1, h, w). residuals: (1, C, F, h, w), as predicted so far. pixels: the photo, (1, 3, H, W) in
    [-1, 1]. A decoder that moves the photo only moves it. For others a linear map from latents to colours is fitted to
    the photo and its own latents, cell by cell, and applied to the frame's latents.
    """
    if needs_image(vae):
        moved = vae.decode_motion(residuals[0].transpose(0, 1).float(), pixels[0].to(vae.device), slice(-1, None))
        return to_frames(moved)[0]
    first, last = image_latents[0, :, 0].float(), (image_latents[0, :, 0] + residuals[0, :, -1]).float()
    colours = F.interpolate(pixels.to(first), size=first.shape[-2:], mode="area")[0].flatten(1).T  # (h w, 3)
    ones = first.new_ones(len(colours), 1)
    weights = torch.linalg.pinv(torch.cat([first.flatten(1).T, ones], 1)) @ colours  # (C + 1, 3)
    cells = torch.cat([last.flatten(1).T, ones], 1) @ weights
    return to_frames(cells.T.view(1, 3, *first.shape[-2:]))[0]


def encoded(frame: np.ndarray) -> bytes:
    """Encode a preview, uint8 (H, W, 3), as WebP, scaled so that its longer side has LONGEST_SIDE pixels."""
    picture, buffer = Image.fromarray(frame), io.BytesIO()
    scale = LONGEST_SIDE / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    picture.resize((size[0], size[1]), Image.Resampling.BICUBIC).save(
        buffer, "WEBP", quality=60, xmp=provenance.packet()
    )
    return buffer.getvalue()
