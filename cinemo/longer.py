"""Beyond one clip: chains of clips, and loops.

Knows the pipeline and frames. Knows nothing of files.
"""

from typing import Any

import numpy as np
import torch

from cinemo.arguments import check_size
from cinemo.checkpoint import vae_factor
from cinemo.image import fit_pixels, read_image
from cinemo.latents import decode_latents, encode_pixels, needs_image, to_pixels


def extend(
    pipe: Any,
    image: Any,
    prompt: str,
    more: int,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    **settings: Any,
) -> list[np.ndarray]:
    """A clip and `more` that go on from it, each from the last frame of the one before.

    What is handed on is that frame's latents, not its pixels: the VAE loses nothing on the way. A decoder that moves
    the photo loses nothing of it, and goes on from its pixels. Clip k is drawn from seed + k. settings: as
    CinemoPipeline's. Returns uint8 (N, H, W, 3) for the first clip and (N - 1, H, W, 3) for each further one, whose
    first frame is the last of the one before. Raises ValueError.
    """
    if more < 0:
        raise ValueError(f"extend {more} is below 0; it is the number of further clips")
    height, width = check_size(height, width, vae_factor(pipe.vae.config), pipe.card.sizes)
    pixels = fit_pixels(read_image(image), height, width)
    start = encode_pixels(pipe.vae, pixels)[:, :, None]
    clips = []
    for number in range(more + 1):
        wish = {"seed": seed + number, "image_latents": start, "output_type": "latent", **settings}
        residuals = pipe(None, prompt, **wish).frames
        start = start.to(residuals)
        whole = torch.cat((start, start + residuals), dim=2)
        frames = decode_latents(pipe.vae, whole, images=pixels)[0]
        clips.append(frames[1:] if number else frames)
        start, pixels = whole[:, :, -1:], to_pixels(frames[-1:])
        if needs_image(pipe.vae):
            start = encode_pixels(pipe.vae, pixels)[:, :, None]
    return clips


def loop(frames: np.ndarray) -> np.ndarray:
    """Forward and back again: uint8 (N, H, W, 3) -> (2 N - 2, H, W, 3), for N >= 2.

    Played again and again it has no seam: the step from its last frame to its first is one that the clip makes too.
    """
    return np.concatenate([frames, frames[-2:0:-1]])


def drift(clips: list[np.ndarray]) -> list[float]:
    """How far the colours of each clip's last frame are from the first frame's: CIE Lab distances of the means."""
    from cinemo.metrics.frames import mean_colour_drift  # a second to import, and few commands need it

    ends = np.stack([clips[0][0], *(clip[-1] for clip in clips)])
    return [float(distance) for distance in mean_colour_drift(ends)[1:]]
