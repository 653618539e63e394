"""CinemoPipeline: photos + prompts -> animations (paper, section 3 and Fig. 2).

Reads as the method: encode, draw noise, refine it (DCTInit), denoise the motion residuals, add the image, decode. Knows
the components and their order. Knows nothing of files (cinemo.checkpoint), schedules' formulas (diffusers) or services.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder, DDIMScheduler, DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from cinemo import checkpoint
from cinemo.dctinit import dct_init as refine_noise
from cinemo.image import fit_pixels, read_image
from cinemo.motion import motion_id

logger = logging.getLogger("cinemo")

DEFAULT_SIZE = (320, 512)  # the paper's, for models that state none
MAX_FRAMES = 64


@dataclass
class CinemoPipelineOutput(BaseOutput):
    """frames: uint8 (B, N, H, W, 3), lists of PIL images, or residual latents (B, C, F, h, w), by output_type."""

    frames: Any


class CinemoPipeline(DiffusionPipeline):
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

        vae: "temporal", "frame", or "auto" (temporal where there is one). Raises ValueError, naming what is missing.
        """
        root = checkpoint.resolve(model)
        tokenizer, text_encoder = checkpoint.load_text(root, dtype, device)
        return cls(
            vae=checkpoint.load_vae(root, vae, dtype, device),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=checkpoint.load_unet(root, dtype, device),
            scheduler=checkpoint.load_scheduler(root),
            card=checkpoint.read_card(root),
        )

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
    ) -> CinemoPipelineOutput:
        """Animate one image, or B: image, prompts, motion_bucket, guidance_scale and seed may be lists of length B.

        image: path, bytes, PIL image or uint8 (H, W, 3); fitted to height x width (default: the model's first trained
        size) by scaling and a centre cut. motion_bucket: 0 (still) to 19; raw_motion_id replaces the model's mapping.
        guidance_scale: 1 or less skips the negative prompt. dct_cutoff, dct_timestep: DCTInit's p and tau.
        image_latents (B, C, 1, h, w), scaled, replace encoding (image may then be None); latents (B, C, F, h, w)
        replace the initial noise and DCTInit, and fix the number of frames.
        decode_chunk_size: frames a VAE call decodes.
        callback_on_step_end(pipeline, step, timestep, {"latents": ...}) may return a dict with new "latents".
        A sample's result depends on its own seed and settings alone, never on its batch. Raises ValueError.
        """
        # 1. What is asked for, checked before anything is computed.
        settings = (prompt, negative_prompt, motion_bucket, raw_motion_id, guidance_scale, seed)
        batch = batch_size(image, *settings, image_latents, latents)
        seeds = spread("seed", seed, batch)
        ids = motion_ids(motion_bucket, raw_motion_id, self.card.motion, batch)
        if latents is not None:
            num_frames = latents.shape[2] + 1
        factor = vae_factor(self.vae)
        if image_latents is not None:
            height, width = image_latents.shape[-2] * factor, image_latents.shape[-1] * factor
        height, width = check_size(height, width, factor, self.card.sizes)
        check_length(num_frames, self.card.lengths)
        check_settings(num_inference_steps, dct_timestep, output_type, decode_chunk_size, self.scheduler)

        # 2. The image's latents and the text's features.
        device, dtype = self._execution_device, self.unet.dtype
        if image_latents is None:
            photos = spread("image", image, batch)
            pixels = torch.cat([fit_pixels(read_image(photo), height, width) for photo in photos])
            image_latents = encode_pixels(self.vae, pixels)[:, :, None]
        image_latents = image_latents.to(device, dtype)
        prompts = [str(p) for p in spread("prompt", prompt, batch)]
        scales = [max(1.0, float(scale)) for scale in spread("guidance_scale", guidance_scale, batch)]
        guided = max(scales) > 1.0
        if guided:
            prompts = [str(p) for p in spread("negative_prompt", negative_prompt, batch)] + prompts
        text = encode_prompts(self.tokenizer, self.text_encoder, prompts).to(device, dtype)

        # 3. Initial noise, one generator a sample (section 3.3).
        scheduler = type(self.scheduler).from_config(self.scheduler.config)  # timesteps are state: not shared by calls
        scheduler.set_timesteps(num_inference_steps)
        if latents is None:
            shape = (image_latents.shape[1], num_frames - 1, *image_latents.shape[-2:])
            latents = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds])
            if dct_init:
                alpha_bar = scheduler.alphas_cumprod[dct_timestep].double()
                latents = refine_noise(latents, image_latents, alpha_bar, dct_cutoff)
        latents = latents.to(device, dtype)

        # 4. Denoise the residuals (section 3.2), with classifier-free guidance.
        twice = 2 if guided else 1
        scale = torch.tensor(scales, device=device, dtype=dtype).view(-1, 1, 1, 1, 1)
        conditions = (text, image_latents.repeat(twice, 1, 1, 1, 1), torch.tensor(ids, device=device).repeat(twice))
        with self.progress_bar(total=num_inference_steps) as bar:
            for step, timestep in enumerate(scheduler.timesteps):
                predicted = self.unet(latents.repeat(twice, 1, 1, 1, 1), int(timestep), *conditions).sample
                if guided:
                    negative, positive = predicted.chunk(2)
                    predicted = negative + scale * (positive - negative)
                latents = scheduler.step(predicted, timestep, latents).prev_sample
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, step, timestep, {"latents": latents}).get("latents", latents)
                bar.update()

        # 5. Image + residuals -> pixels.
        if output_type == "latent":
            return CinemoPipelineOutput(frames=latents)
        frames = decode_latents(self.vae, torch.cat((image_latents, image_latents + latents), dim=2), decode_chunk_size)
        if output_type == "pil":
            return CinemoPipelineOutput(frames=[[Image.fromarray(frame) for frame in clip] for clip in frames])
        return CinemoPipelineOutput(frames=frames)


def vae_factor(vae: Any) -> int:
    """Pixels a latent cell, per side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Posterior mean times the scaling factor: (B, 3, H, W) in [-1, 1] -> (B, C, h, w) in the VAE's dtype.

    The official code draws from the posterior; the mean makes frame 0 repeatable and nearer to the input.
    """
    return encode_posterior(vae, pixels)[0]


@torch.no_grad()
def encode_posterior(vae: Any, pixels: Tensor, chunk: int = 16) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the scaled latents: (B, 3, H, W) in [-1, 1] -> twice (B, C, h, w).

    A draw is mean + exp(log-variance / 2) * noise. chunk: pictures that the VAE takes at once.
    """
    scale = vae.config.scaling_factor
    parts = [vae.encode(part).latent_dist for part in pixels.to(vae.device, vae.dtype).split(chunk)]
    logvar = torch.cat([part.logvar for part in parts]) + 2 * math.log(scale)
    return torch.cat([part.mean for part in parts]) * scale, logvar


def to_pixels(frames: np.ndarray) -> Tensor:
    """Frames as a VAE takes them: uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return torch.tensor(frames).permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0


def encode_frames(vae: Any, frames: np.ndarray) -> Tensor:
    """Clips -> latents, frame by frame (Algorithm 1, line 4): uint8 (B, N, H, W, 3) -> (B, C, N, h, w)."""
    batch, count = frames.shape[:2]
    pixels = to_pixels(frames.reshape(-1, *frames.shape[2:]))
    return encode_pixels(vae, pixels).unflatten(0, (batch, count)).transpose(1, 2)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor, chunk: int = 14) -> np.ndarray:
    """Latents -> clips: (B, C, N, h, w), scaled -> uint8 (B, N, H, W, 3).

    chunk: frames a call decodes. A temporal decoder sees the neighbours within its chunk only, so another chunk than
    the official 14 gives slightly other pixels there; a chunk never holds frames of two clips.
    """
    clips = []
    for clip in latents.to(vae.dtype) / vae.config.scaling_factor:
        parts = clip.transpose(0, 1).split(chunk)
        temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
        pixels = torch.cat([vae.decode(p, **({"num_frames": len(p)} if temporal else {})).sample for p in parts])
        levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        clips.append(levels.permute(0, 2, 3, 1).cpu().numpy())
    return np.stack(clips)


@torch.no_grad()
def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> Tensor:
    """Prompts -> text features (B, T, D), padded to the tokenizer's T = 77 tokens. Says so when it cuts a prompt."""
    length = tokenizer.model_max_length
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    for prompt in dict.fromkeys(prompts):
        own = tokenizer(prompt).input_ids
        if len(own) > length:
            lost = tokenizer.decode(own[length - 1 : -1])
            logger.warning("the prompt is longer than %d tokens; this part was cut: %r", length, lost)
    return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state


def batch_size(*arguments: Any) -> int:
    """The one length of all arguments that are lists or batches of tensors. Raises ValueError when they differ."""
    lengths = {len(a) for a in arguments if isinstance(a, (list, tuple)) or (isinstance(a, Tensor) and a.ndim == 5)}
    if 0 in lengths or len(lengths) > 1:
        raise ValueError(
            f"lists of lengths {sorted(lengths)} were given; image, prompt, motion_bucket and seed need one length"
        )
    return lengths.pop() if lengths else 1


def spread(name: str, value: Any, batch: int) -> list[Any]:
    """One value for all samples, or a list with one for each."""
    if value is None:
        raise ValueError(f"{name} is missing")
    return list(value) if isinstance(value, (list, tuple)) else [value] * batch


def motion_ids(bucket: Any, raw: Any, mapping: dict[str, str], batch: int) -> list[float]:
    if raw is not None:
        return [float(value) for value in spread("raw_motion_id", raw, batch)]
    return [float(motion_id(value, mapping)) for value in spread("motion_bucket", bucket, batch)]


def check_size(
    height: int | None, width: int | None, factor: int, trained: Sequence[tuple[int, int]] | None
) -> tuple[int, int]:
    """The size to animate at, in pixels. Raises ValueError for one that the model cannot take."""
    default = trained[0] if trained else DEFAULT_SIZE
    size = (height or default[0], width or default[1])
    if trained and size not in [tuple(known) for known in trained]:
        known = ", ".join(f"{h} x {w}" for h, w in trained)
        raise ValueError(f"height x width {size[0]} x {size[1]} was not trained by this model; it takes {known}")
    if size[0] % factor or size[1] % factor or not 8 * factor <= min(size) <= max(size) <= 4096:
        raise ValueError(
            f"height x width {size[0]} x {size[1]} does not fit; "
            f"both must be multiples of {factor} from {8 * factor} to 4096"
        )
    return size


def check_length(num_frames: int, trained: Sequence[int] | None) -> None:
    if trained and num_frames not in trained:
        raise ValueError(
            f"num_frames {num_frames} was not trained by this model; it takes {', '.join(map(str, trained))}"
        )
    if not 2 <= num_frames <= MAX_FRAMES:
        raise ValueError(f"num_frames {num_frames} is outside 2..{MAX_FRAMES}")


def check_settings(steps: int, dct_timestep: int, output_type: str, chunk: int, scheduler: Any) -> None:
    last = scheduler.config.num_train_timesteps
    if not 1 <= steps < last:
        raise ValueError(f"num_inference_steps {steps} is outside 1..{last - 1}; the paper uses 50")
    if not 0 <= dct_timestep < last:
        raise ValueError(f"dct_timestep {dct_timestep} is outside 0..{last - 1}; the paper's code uses 975")
    if output_type not in ("np", "pil", "latent"):
        raise ValueError(f"output_type {output_type!r} is unknown; use 'np', 'pil' or 'latent'")
    if chunk < 1:
        raise ValueError(f"decode_chunk_size {chunk} must be at least 1; 14 is the official one")
