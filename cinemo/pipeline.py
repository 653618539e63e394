"""CinemoPipeline: photos + prompts -> animations (paper, section 3 and Fig. 2).

Follows the method's steps: encode, draw noise, refine it (DCTInit), denoise the motion residuals, add the image,
decode. Files are read in cinemo.checkpoint; guidance and timesteps are in cinemo.sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from cinemo import checkpoint
from cinemo.adapters import LoraLoaderMixin
from cinemo.arguments import (
    batch_size,
    check_guidance,
    check_length,
    check_settings,
    check_size,
    check_video,
    motion_ids,
    spread,
)
from cinemo.dctinit import dct_init as refine_noise
from cinemo.editing import invert_residuals
from cinemo.image import fit_pixels, read_image
from cinemo.latents import check_finite, decode_latents, encode_frames, encode_pixels, encode_prompts
from cinemo.residual import join, motion_residuals
from cinemo.sampling import Guidance, denoise, make_scheduler


@dataclass
class CinemoPipelineOutput(BaseOutput):
    """frames: uint8 (B, N, H, W, 3), lists of PIL images, or residual latents (B, C, F, h, w), by output_type."""

    frames: Any


class CinemoPipeline(LoraLoaderMixin, DiffusionPipeline):
    """Animates still images. Make one with `CinemoPipeline.from_pretrained(model)`; it is safe to call from threads."""

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: DDIMScheduler,
        card: checkpoint.ModelCard | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.card = card or checkpoint.ModelCard()
        self.set_progress_bar_config(disable=None, leave=False)  # a bar on terminals, nothing in logs

    @classmethod
    def from_pretrained(
        cls, model: Any, dtype: torch.dtype = torch.float32, device: str = "cpu", vae: str = "auto"
    ) -> "CinemoPipeline":
        """Load a MODEL: "builtin:tiny", a model directory (official layout or ours), or a hub id.

        vae: "temporal", "frame", or "auto" (temporal if present). With float16 it is loaded in float32, because
        Stable Diffusion's VAE overflows. Raises ValueError that names what is missing.
        """
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        root = checkpoint.resolve(model)
        tokenizer, text_encoder = checkpoint.load_text(root, dtype, device)
        pipe = cls(
            vae=checkpoint.load_vae(root, vae, vae_dtype, device),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=checkpoint.load_unet(root, dtype, device),
            scheduler=checkpoint.load_scheduler(root),
            card=checkpoint.read_card(root),
        )
        pipe.directory, pipe.model_name = root, str(model)
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        motion_bucket: int | Sequence[int] = 10,
        raw_motion_id: float | Sequence[float] | None = None,
        num_frames: int = 16,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] = 7.5,
        seed: int | Sequence[int] = 0,
        dct_init: bool = True,
        dct_cutoff: float = 0.23,
        dct_timestep: int = 975,
        image_latents: Tensor | None = None,
        latents: Tensor | None = None,
        decode_chunk_size: int = 14,
        output_type: str = "np",
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        scheduler: str | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        dct_transform: str = "dct",
        cache_interval: int = 1,
        fit: str = "crop",
    ) -> CinemoPipelineOutput:
        """Animate one image, or B: image, prompts, motion_bucket, guidance_scale and seed may be lists of length B.

        image: path, bytes, PIL image or uint8 (H, W, 3); fitted to height x width (default: the model's first trained
        size) as fit says, "crop" or "pad" (cinemo.image.fit_pixels).
        motion_bucket: 0 (still) to 19; raw_motion_id bypasses the model's mapping.
        guidance_scale: 1 or less skips the negative prompt. dct_cutoff, dct_timestep: DCTInit's p and tau.
        image_latents (B, C, 1, h, w), scaled, replace encoding (image may then be None, unless the decoder moves it);
        latents (B, C, F, h, w) replace the initial noise and DCTInit, and fix the number of frames.
        decode_chunk_size: frames per VAE call.
        callback_on_step_end(pipeline, step, timestep, values) may return a dict with new "latents". values: "latents",
        "denoised" (the latents without their predicted noise), "image_latents", and "pixels" (B, 3, H, W) or None.
        scheduler: a name in cinemo.sampling.SCHEDULERS; None is the model's own, DDIM. guidance_rescale: 0..1, after
        Lin et al. (arXiv 2305.08891). guidance_interval: begin and end of the guided steps, as shares of all steps.
        dct_transform: "fft" is the other variant of Fig. 3. cache_interval: number of steps that
        share the features of the U-Net's deeper blocks (DeepCache); 1 is exact.
        A sample's result depends only on its own seed and settings, never on its batch. Raises ValueError, and
        FloatingPointError when a result is NaN or infinite.
        """
        # 1. Check the arguments before anything is computed.
        settings = (prompt, negative_prompt, motion_bucket, raw_motion_id, guidance_scale, seed)
        batch = batch_size(image, *settings, image_latents, latents)
        seeds = spread("seed", seed, batch)
        ids = motion_ids(motion_bucket, raw_motion_id, self.card.motion, batch)
        if latents is not None:
            num_frames = latents.shape[2] + 1
        factor = checkpoint.vae_factor(self.vae.config)
        if image_latents is not None:
            height, width = image_latents.shape[-2] * factor, image_latents.shape[-1] * factor
        height, width = check_size(height, width, factor, self.card.sizes)
        check_length(num_frames, self.card.lengths)
        check_settings(num_inference_steps, dct_timestep, output_type, decode_chunk_size, self.scheduler)
        check_guidance(guidance_rescale, guidance_interval)
        schedule = make_scheduler(self.scheduler, scheduler, num_inference_steps)

        # 2. The image's latents and the text's features.
        device, dtype = self._execution_device, self.unet.dtype
        pixels = None
        if image is not None or image_latents is None:
            photos, exact = spread("image", image, batch), image_latents is not None
            pixels = torch.cat([fit_pixels(read_image(photo), height, width, exact, fit) for photo in photos])
        if image_latents is None:
            image_latents = encode_pixels(self.vae, pixels)[:, :, None]
        image_latents = image_latents.to(device, dtype)
        prompts = [str(p) for p in spread("prompt", prompt, batch)]
        scales = [max(1.0, float(scale)) for scale in spread("guidance_scale", guidance_scale, batch)]
        guidance = Guidance(scales, guidance_rescale, guidance_interval)
        if guidance.wanted:
            prompts = [str(p) for p in spread("negative_prompt", negative_prompt, batch)] + prompts
        text = encode_prompts(self.tokenizer, self.text_encoder, prompts).to(device, dtype)

        # 3. Initial noise, one generator per sample (section 3.3).
        if latents is None:
            latents = draw_noise(image_latents, num_frames - 1, seeds)
            if dct_init:
                alpha_bar = self.scheduler.alphas_cumprod[dct_timestep].double()
                latents = refine_noise(latents, image_latents, alpha_bar, dct_cutoff, dct_transform)
        latents = latents.to(device, dtype)

        # 4. Denoise the residuals (section 3.2).
        with self.progress_bar(total=len(schedule.timesteps)) as bar:

            def on_step(step: int, timestep: Any, latents: Tensor, denoised: Tensor) -> Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return latents
                values = {"latents": latents, "denoised": denoised, "image_latents": image_latents, "pixels": pixels}
                return callback_on_step_end(self, step, timestep, values).get("latents", latents)

            latents = denoise(self.unet, schedule, latents, image_latents, text, ids, guidance, on_step, cache_interval)
        check_finite(latents)

        # 5. Image + residuals -> pixels.
        if output_type == "latent":
            return CinemoPipelineOutput(frames=latents)
        frames = decode_latents(self.vae, join(image_latents, latents), decode_chunk_size, pixels)
        if output_type == "pil":
            return CinemoPipelineOutput(frames=[[Image.fromarray(frame) for frame in clip] for clip in frames])
        return CinemoPipelineOutput(frames=frames)

    @torch.no_grad()
    def invert(
        self,
        video_frames: np.ndarray | None,
        prompt: str | Sequence[str],
        motion_bucket: int | Sequence[int] = 10,
        raw_motion_id: float | Sequence[float] | None = None,
        num_inference_steps: int = 50,
        image_latents: Tensor | None = None,
        latents: Tensor | None = None,
        on_step: Callable[[], object] = bool,
    ) -> Tensor:
        """Find the noise from which DDIM, without guidance, arrives at a video's motion (cinemo.editing).

        video_frames: uint8 (N, H, W, 3), at a size and length that the model takes, or None with image_latents
        (B, C, 1, h, w) and latents (B, C, F, h, w), the motion residuals, both scaled. on_step: called after each step.
        The rest as in __call__.
        Returns (B, C, F, h, w); pass it as `latents` with the same prompt, bucket and number of steps.
        Raises ValueError.
        """
        if (image_latents is None) != (latents is None):
            raise ValueError("image_latents and latents go together; pass both, or video_frames alone")
        if latents is None:
            encoded = encode_frames(self.vae, check_video(video_frames)[None])
            image_latents, latents = encoded[:, :, :1], motion_residuals(encoded)
        assert image_latents is not None
        batch = batch_size(prompt, motion_bucket, raw_motion_id, image_latents, latents)
        factor = checkpoint.vae_factor(self.vae.config)
        check_size(latents.shape[-2] * factor, latents.shape[-1] * factor, factor, self.card.sizes)
        check_length(latents.shape[2] + 1, self.card.lengths)
        check_settings(num_inference_steps, 0, "latent", 1, self.scheduler)
        ids = motion_ids(motion_bucket, raw_motion_id, self.card.motion, batch)
        device, dtype = self._execution_device, self.unet.dtype
        prompts = [str(p) for p in spread("prompt", prompt, batch)]
        text = encode_prompts(self.tokenizer, self.text_encoder, prompts).to(device, dtype)
        residuals, image_latents = latents.to(device, dtype), image_latents.to(device, dtype)
        return invert_residuals(
            self.unet, self.scheduler, residuals, image_latents, text, ids, num_inference_steps, on_step
        )


def draw_noise(image_latents: Tensor, frames: int, seeds: Sequence[int]) -> Tensor:
    """Draw the initial noise, one generator a sample. image_latents: (B, C, 1, h, w). Returns (B, C, F, h, w)."""
    shape = (image_latents.shape[1], frames, *image_latents.shape[-2:])
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
