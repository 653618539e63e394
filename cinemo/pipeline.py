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
        motion_bucket: int | Sequence[int] | None = None,
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
        motion_bucket: 0 (still) to 19, None: the model's default; raw_motion_id bypasses the model's mapping.
        guidance_scale: 1 or less skips the negative prompt. dct_cutoff, dct_timestep: DCTInit's p and tau.
        image_latents (B, C, 1, h, w), scaled, replace encoding (image may then be None, unless the decoder moves it);
        latents (B, C, F, h, w) replace the initial noise and DCTInit, and fix the number of frames.
        decode_chunk_size: frames per VAE call.
        callback_on_step_end(pipeline, step, timestep, values) may return a dict with new "latents". values: "latents",
        "denoised" (the latents without their predicted noise), "image_latents", and "pixels" (B, 3, H, W) or None.
        scheduler: a name in cinemo.samplers.SCHEDULERS; None is the model's own, DDIM. guidance_rescale: 0..1, after
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
        ids = motion_ids(motion_bucket, raw_motion_id, self.card, batch)
        num_frames = num_frames if latents is None else latents.shape[2] + 1
        height, width = self.check_frame_size(height, width, image_latents)
        check_length(num_frames, self.card.lengths)
        check_settings(num_inference_steps, dct_timestep, output_type, decode_chunk_size, self.scheduler)
        check_guidance(guidance_rescale, guidance_interval)
        schedule = make_scheduler(self.scheduler, scheduler, num_inference_steps)

        # 2. The image's latents and the text's features.
        photos = None if image is None and image_latents is not None else spread("image", image, batch)
        pixels, image_latents = self.prepare_image(photos, height, width, image_latents, fit)
        scales = [max(1.0, float(scale)) for scale in spread("guidance_scale", guidance_scale, batch)]
        guidance = Guidance(scales, guidance_rescale, guidance_interval)
        text = self.encode_prompt(prompt, negative_prompt if guidance.wanted else None, batch)

        # 3. Initial noise, one generator per sample (section 3.3).
        refinement = (dct_timestep, dct_cutoff, dct_transform) if dct_init else None
        latents = self.prepare_latents(image_latents, num_frames - 1, seeds, refinement, latents)

        # 4. Denoise the residuals (section 3.2).
        with self.progress_bar(total=len(schedule.timesteps)) as bar:
            on_step = self.make_on_step(bar, callback_on_step_end, image_latents, pixels)
            latents = denoise(self.unet, schedule, latents, image_latents, text, ids, guidance, on_step, cache_interval)
        check_finite(latents)

        # 5. Image + residuals -> pixels.
        return CinemoPipelineOutput(self.make_frames(image_latents, latents, pixels, output_type, decode_chunk_size))

    def check_frame_size(
        self, height: int | None, width: int | None, image_latents: Tensor | None = None
    ) -> tuple[int, int]:
        """Return the height and width in pixels: those of image_latents (..., h, w), or else those requested.

        None requests the model's first trained size. Raises ValueError for a size that the model does not take.
        """
        factor = checkpoint.vae_factor(self.vae.config)
        if image_latents is not None:
            height, width = image_latents.shape[-2] * factor, image_latents.shape[-1] * factor
        return check_size(height, width, factor, self.card.sizes)

    def prepare_image(
        self, photos: Sequence[Any] | None, height: int, width: int, image_latents: Tensor | None, fit: str
    ) -> tuple[Tensor | None, Tensor]:
        """Fit the photos to height x width, and encode them unless image_latents (B, C, 1, h, w) are given.

        photos: None if there are only image_latents. Returns pixels (B, 3, H, W), None without photos, and image
        latents with the U-Net's device and dtype. Raises ValueError.
        """
        pixels, exact = None, image_latents is not None
        if photos is not None:
            pixels = torch.cat([fit_pixels(read_image(photo), height, width, exact, fit) for photo in photos])
        if image_latents is None:
            image_latents = encode_pixels(self.vae, pixels)[:, :, None]
        return pixels, image_latents.to(self._execution_device, self.unet.dtype)

    def encode_prompt(
        self, prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None, batch: int
    ) -> Tensor:
        """Encode prompts as one tensor, unlike diffusers: (B, T, D), or (2 B, T, D) with the negative prompts first."""
        prompts = [str(p) for p in spread("prompt", prompt, batch)]
        if negative_prompt is not None:
            prompts = [str(p) for p in spread("negative_prompt", negative_prompt, batch)] + prompts
        return encode_prompts(self.tokenizer, self.text_encoder, prompts).to(self._execution_device, self.unet.dtype)

    def prepare_latents(
        self,
        image_latents: Tensor,
        frames: int,
        seeds: Sequence[int],
        refinement: tuple[int, float, str] | None,
        latents: Tensor | None,
    ) -> Tensor:
        """Draw the initial noise and refine it with the image (DCTInit), unless latents (B, C, F, h, w) are given.

        image_latents: (B, C, 1, h, w). frames: F. refinement: DCTInit's timestep, cutoff and transform; None: do not
        refine. Returns (B, C, F, h, w), on the device and in the dtype of image_latents.
        """
        if latents is None:
            latents = draw_noise(image_latents, frames, seeds)
            if refinement is not None:
                timestep, cutoff, transform = refinement
                alpha_bar = self.scheduler.alphas_cumprod[timestep].double()
                latents = refine_noise(latents, image_latents, alpha_bar, cutoff, transform)
        return latents.to(image_latents)

    def make_on_step(
        self, bar: Any, callback: Callable[..., dict[str, Any]] | None, image_latents: Tensor, pixels: Tensor | None
    ) -> Callable[[int, Any, Tensor, Tensor], Tensor]:
        """Make the function that `denoise` calls after each step: it advances the bar and calls the callback."""

        def on_step(step: int, timestep: Any, latents: Tensor, denoised: Tensor) -> Tensor:
            bar.update()
            if callback is None:
                return latents
            values = {"latents": latents, "denoised": denoised, "image_latents": image_latents, "pixels": pixels}
            return callback(self, step, timestep, values).get("latents", latents)

        return on_step

    def make_frames(
        self, image_latents: Tensor, residuals: Tensor, pixels: Tensor | None, output_type: str, chunk_size: int
    ) -> Any:
        """Make the output: residuals for output_type "latent", else decoded frames. chunk_size: frames per VAE call."""
        if output_type == "latent":
            return residuals
        frames = decode_latents(self.vae, join(image_latents, residuals), chunk_size, pixels)
        return [[Image.fromarray(frame) for frame in clip] for clip in frames] if output_type == "pil" else frames

    @torch.no_grad()
    def invert(
        self,
        video_frames: np.ndarray | None,
        prompt: str | Sequence[str],
        motion_bucket: int | Sequence[int] | None = None,
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
        self.check_frame_size(None, None, latents)
        check_length(latents.shape[2] + 1, self.card.lengths)
        check_settings(num_inference_steps, 0, "latent", 1, self.scheduler)
        ids = motion_ids(motion_bucket, raw_motion_id, self.card, batch)
        text = self.encode_prompt(prompt, None, batch)
        device, dtype = self._execution_device, self.unet.dtype
        residuals, image_latents = latents.to(device, dtype), image_latents.to(device, dtype)
        return invert_residuals(
            self.unet, self.scheduler, residuals, image_latents, text, ids, num_inference_steps, on_step
        )


def draw_noise(image_latents: Tensor, frames: int, seeds: Sequence[int]) -> Tensor:
    """Draw the initial noise, one generator a sample. image_latents: (B, C, 1, h, w). Returns (B, C, F, h, w)."""
    shape = (image_latents.shape[1], frames, *image_latents.shape[-2:])
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
