"""Video editing and motion transfer (paper, section 4.3): DDIM inversion of motion residuals, and sampling from them.

Inversion finds the noise from which sampling would arrive at a given video. Sampling from it with another first frame
gives that frame the video's motion.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from cinemo import motion
from cinemo.arguments import check_settings, check_video
from cinemo.dctinit import dct_init as refine_noise
from cinemo.image import check_aspect, fit_pixels, read_image
from cinemo.latents import encode_frames, encode_pixels
from cinemo.residual import motion_residuals
from cinemo.sampling import make_scheduler

ROUNDS = 3  # of the fixed-point iteration: with 25 steps, two reproduce a video at 37 dB, three at 50 dB
DCT_TIMESTEP = 985  # as in the official editing script; animation uses 975


@torch.no_grad()
def invert_residuals(
    unet: Any,
    scheduler: Any,
    residuals: Tensor,
    image_latents: Tensor,
    text: Tensor,
    motion_ids: Sequence[float],
    steps: int,
    on_step: Callable[[], object] = bool,
) -> Tensor:
    """Motion residuals -> the noise from which DDIM would sample them: (B, C, F, h, w) -> the same shape.

    Timesteps ascend. To go from noise level t - 1000 // steps to t, the network predicts at t, without guidance, and
    the DDIM step is solved for its input (diffusers' DDIMInverseScheduler, which is the official code's arithmetic).
    image_latents: (B, C, 1, h, w). text: (B, T, D). scheduler: the model's DDIM. Velocities are inverted by
    invert_velocity, since at a level without signal they cannot be converted to noise. on_step: called after each step.
    """
    ids = torch.tensor(motion_ids, device=residuals.device)

    def predict(sample: Tensor, timestep: int) -> Tensor:
        return unet(sample, timestep, text, image_latents, ids).sample

    if scheduler.config.prediction_type == "v_prediction":
        return invert_velocity(predict, scheduler, residuals, steps, on_step)
    inverse = DDIMInverseScheduler.from_config({**scheduler.config, "prediction_type": "epsilon"})
    inverse.set_timesteps(steps)
    for timestep in inverse.timesteps.tolist():
        noise = as_noise(predict(residuals, timestep), residuals, scheduler, timestep)
        residuals = inverse.step(noise, timestep, residuals).prev_sample
        on_step()
    return residuals


def invert_velocity(
    predict: Callable[[Tensor, int], Tensor],
    scheduler: Any,
    residuals: Tensor,
    steps: int,
    on_step: Callable[[], object],
) -> Tensor:
    """invert_residuals for a network that predicts the velocity v: each DDIM step is solved for its input.

    The step from level t to s is x_s = cos x_t - sin v, with the angle between the levels; v depends on x_t, so the
    equation is solved by fixed-point iteration, beginning with x_s.
    """
    schedule = make_scheduler(scheduler, None, steps)
    gap = scheduler.config.num_train_timesteps // steps
    for timestep in schedule.timesteps.flip(0).tolist():
        below = schedule.alphas_cumprod[timestep - gap] if timestep >= gap else schedule.final_alpha_cumprod
        alpha, source_alpha = schedule.alphas_cumprod[timestep].to(residuals), below.to(residuals)
        cosine = (alpha * source_alpha).sqrt() + ((1 - alpha) * (1 - source_alpha)).sqrt()
        sine = (source_alpha * (1 - alpha)).sqrt() - (alpha * (1 - source_alpha)).sqrt()
        source = residuals
        for _ in range(ROUNDS):
            residuals = (source + sine * predict(residuals, timestep)) / cosine
        on_step()
    return residuals


def as_noise(predicted: Tensor, sample: Tensor, scheduler: Any, timestep: int) -> Tensor:
    """Convert a prediction for `sample`, of noise or of the clean residuals, to the noise; shapes stay."""
    alpha = scheduler.alphas_cumprod[timestep].to(sample)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return predicted
    assert prediction_type == "sample", prediction_type
    return (sample - alpha.sqrt() * predicted) / (1 - alpha).sqrt()


def edit_video(
    pipe: Any,
    frames: np.ndarray,
    image: Any,
    prompt: str,
    source_prompt: str | None = None,
    motion_bucket: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    dct_init: bool = False,
    dct_cutoff: float = 0.23,
    dct_timestep: int = DCT_TIMESTEP,
    **settings: Any,
) -> np.ndarray:
    """Give the video's motion to an edited first frame: uint8 (N, H, W, 3) -> the same shape.

    frames: the video, at a size and length that the model takes. image: its first frame after editing, with the
    video's aspect ratio; anything that read_image takes. prompt: for the result; source_prompt: for the video, the
    same when None. motion_bucket: of both; measured in the video when None. guidance_scale: 1 keeps the video's motion
    exactly; more follows the prompt instead. dct_init: put the edited image's low frequencies into the inverted noise.
    settings: as CinemoPipeline's. Raises ValueError.
    """
    edited, frames = read_image(image), check_video(frames)
    bucket = motion.motion_bucket(motion.motion_score(frames)) if motion_bucket is None else motion_bucket
    height, width = frames.shape[1:3]
    check_aspect(edited, height, width)
    check_settings(num_inference_steps, dct_timestep, "np", 1, pipe.scheduler)
    source = prompt if source_prompt is None else source_prompt
    image_latents = encode_pixels(pipe.vae, fit_pixels(edited, height, width, exact=True))[:, :, None]
    dct = (dct_init, dct_cutoff, dct_timestep)
    noise = inverted_noise(pipe, frames[None], image_latents, source, bucket, num_inference_steps, *dct)
    output = pipe(
        edited,
        prompt,
        motion_bucket=bucket,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        image_latents=image_latents,
        latents=noise,
        **settings,
    )
    return output.frames[0]


@torch.no_grad()
def inverted_noise(
    pipe: Any,
    frames: np.ndarray,
    image_latents: Tensor,
    source_prompt: str | Sequence[str],
    motion_bucket: int | Sequence[int],
    num_inference_steps: int,
    dct_init: bool = False,
    dct_cutoff: float = 0.23,
    dct_timestep: int = DCT_TIMESTEP,
    on_step: Callable[[], object] = bool,
) -> Tensor:
    """Noise from which the pipeline gives edited images the motion of videos: (B, C, F, h, w).

    frames: the videos, uint8 (B, N, H, W, 3). image_latents: of the edited images, (B, C, 1, h, w). source_prompt and
    motion_bucket may be lists, one value per video; the rest, as in edit_video, applies to all. on_step: called after
    each step of the inversion. Raises ValueError.
    """
    encoded = encode_frames(pipe.vae, frames)
    noise = pipe.invert(
        None,
        source_prompt,
        motion_bucket,
        num_inference_steps=num_inference_steps,
        image_latents=encoded[:, :, :1],
        latents=motion_residuals(encoded),
        on_step=on_step,
    )
    if dct_init:
        alpha_bar = pipe.scheduler.alphas_cumprod[dct_timestep].double()
        noise = refine_noise(noise, image_latents.to(noise), alpha_bar, dct_cutoff)
    return noise
