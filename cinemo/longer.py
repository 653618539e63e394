"""Videos longer than one clip: chains of clips, and loops."""

from typing import Any

import numpy as np

from cinemo.arguments import check_size
from cinemo.checkpoint import vae_factor
from cinemo.image import fit_pixels, read_image
from cinemo.latents import decode_latents, encode_pixels, needs_image, to_pixels
from cinemo.residual import join


def extend(
    pipe: Any,
    image: Any,
    prompt: str,
    more: int,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    fit: str = "crop",
    exact: bool = False,
    **settings: Any,
) -> list[np.ndarray]:
    """Sample a clip and `more` clips after it, each starting at the last frame of the one before.

    That frame's latents are passed on rather than its pixels, so that nothing is lost in the VAE. A decoder that moves
    the photo loses nothing of it, and continues from the pixels. Clip k uses seed + k. exact: an image of this size is
    used unchanged, as the last frame of a video must be. settings: as CinemoPipeline's.
    Returns uint8 (N, H, W, 3) for the first clip and (N - 1, H, W, 3) for each further one, without the frame that it
    shares with the one before. Raises ValueError.
    """
    if more < 0:
        raise ValueError(f"extend {more} is below 0; it is the number of further clips")
    height, width = check_size(height, width, vae_factor(pipe.vae.config), pipe.card.sizes)
    pixels = fit_pixels(read_image(image), height, width, exact, fit)
    start = encode_pixels(pipe.vae, pixels)[:, :, None]
    if (callback := settings.get("callback_on_step_end")) is not None:  # the pipeline is called without the pixels
        settings["callback_on_step_end"] = lambda pipe, step, timestep, values: callback(
            pipe, step, timestep, {**values, "pixels": pixels}
        )
    clips = []
    for number in range(more + 1):
        arguments = {"seed": seed + number, "image_latents": start, "output_type": "latent", **settings}
        residuals = pipe(None, prompt, **arguments).frames
        start = start.to(residuals)
        whole = join(start, residuals)
        frames = decode_latents(pipe.vae, whole, images=pixels)[0]
        clips.append(frames[1:] if number else frames)
        start, pixels = whole[:, :, -1:], to_pixels(frames[-1:])
        if needs_image(pipe.vae):
            start = encode_pixels(pipe.vae, pixels)[:, :, None]
    return clips


def loop(frames: np.ndarray) -> np.ndarray:
    """Append the frames in reverse order: uint8 (N, H, W, 3) -> (2 N - 2, H, W, 3), for N >= 2.

    Repeated, it has no seam: the step from its last frame to its first also occurs in the clip.
    """
    return np.concatenate([frames, frames[-2:0:-1]])


def drift(clips: list[np.ndarray]) -> list[float]:
    """Colour drift of each clip's last frame from the very first frame: CIE Lab distance of the mean colours."""
    from cinemo.metrics.frames import mean_colour_drift  # takes a second to import, and few commands need it

    ends = np.stack([clips[0][0], *(clip[-1] for clip in clips)])
    return [float(distance) for distance in mean_colour_drift(ends)[1:]]
