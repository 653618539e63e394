"""Pixels <-> latents, and prompts -> text features, by the VAE and the text encoder of a model directory."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cinemo.checkpoint import vae_factor
from cinemo.memory import free_memory

logger = logging.getLogger("cinemo")


NO_WIDTH = -30.0  # log-variance of an autoencoder that has no posterior; diffusers' own lower bound


def is_plain(vae: Any) -> bool:
    """Whether the autoencoder has no posterior: it encodes a picture to one latent, not to a distribution."""
    from diffusers import AutoencoderDC  # loads every model of diffusers: 1.5 s that a training worker is spared

    return isinstance(vae, AutoencoderDC)


def is_temporal(vae: Any) -> bool:
    """Whether the VAE decodes the frames of a clip together."""
    from diffusers import AutoencoderKLTemporalDecoder

    return isinstance(vae, AutoencoderKLTemporalDecoder)


def needs_image(vae: Any) -> bool:
    """Whether the VAE encodes a clip as motion of its first frame, and decodes by moving the photo."""
    from cinemo.autoencoder import AutoencoderMotion

    return isinstance(vae, AutoencoderMotion)


def encode_pixels(vae: Any, pixels: Tensor) -> Tensor:
    """Encode images to latents, posterior mean times scaling factor: (B, 3, H, W) in [-1, 1] -> (B, C, h, w).

    The official code samples the posterior; the mean makes frame 0 repeatable and closer to the input.
    """
    return encode_posterior(vae, pixels)[0]


@torch.no_grad()
def encode_posterior(vae: Any, pixels: Tensor, chunk: int = 16) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the scaled latents of images: (B, 3, H, W) in [-1, 1] -> twice (B, C, h, w).

    A sample is mean + exp(log-variance / 2) * noise. chunk: pictures per VAE call.
    """
    if needs_image(vae):
        mean = vae.encode_image(pixels.to(vae.device)).to(vae.dtype)
        return mean, torch.full_like(mean, NO_WIDTH)
    scale = vae.config.scaling_factor
    encoded = [vae.encode(part) for part in pixels.to(vae.device, vae.dtype).split(chunk)]
    if is_plain(vae):
        mean = torch.cat([part.latent for part in encoded]) * scale
        return mean, torch.full_like(mean, NO_WIDTH)
    parts = [part.latent_dist for part in encoded]
    logvar = torch.cat([part.logvar for part in parts]) + 2 * math.log(scale)
    return torch.cat([part.mean for part in parts]) * scale, logvar


def encode_clip(vae: Any, frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of a clip's scaled latents: uint8 (N, H, W, 3) -> twice (N, C, h, w)."""
    pixels = to_pixels(frames)
    if not needs_image(vae):
        return encode_posterior(vae, pixels)
    mean = vae.encode(pixels.to(vae.device)).to(vae.dtype)
    return mean, torch.full_like(mean, NO_WIDTH)


def to_pixels(frames: np.ndarray) -> Tensor:
    """Convert frames to a VAE's input: uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in [-1, 1]."""
    return torch.tensor(frames).permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0


def to_frames(pixels: Tensor) -> np.ndarray:
    """Convert a VAE's output to frames: (N, 3, H, W), clipped to [-1, 1] -> uint8 (N, H, W, 3)."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def encode_frames(vae: Any, frames: np.ndarray) -> Tensor:
    """Encode clips to latents (Algorithm 1, line 4): uint8 (B, N, H, W, 3) -> (B, C, N, h, w)."""
    return torch.stack([encode_clip(vae, clip)[0] for clip in frames]).transpose(1, 2)


@torch.no_grad()
def decode_latents(vae: Any, latents: Tensor, chunk: int = 14, images: Tensor | None = None) -> np.ndarray:
    """Decode clips from scaled latents, the first frame's first: (B, C, N, h, w) -> uint8 (B, N, H, W, 3).

    images: (B, 3, H, W) in [-1, 1], the unencoded first frames, for a VAE that needs_image. Raises ValueError if such a
    VAE gets none.

    chunk: most frames per VAE call. A temporal decoder sees only the neighbours within its chunk, so its pixels depend
    slightly on the chunk (official: 14); a chunk never holds frames of two clips. For other decoders a chunk is never
    larger than fits into memory, and is halved if memory runs out nevertheless.
    """
    if needs_image(vae):
        if images is None:
            raise ValueError("this model's decoder moves the photo; pass image as well as image_latents")
        pairs = zip(latents.transpose(1, 2), images.to(latents.device), strict=True)
        return np.stack([to_frames(vae.decode(clip, image)) for clip, image in pairs])
    if not is_temporal(vae):
        chunk = min(chunk, frames_that_fit(vae, latents))
    clips = []
    for clip in latents.to(vae.dtype) / vae.config.scaling_factor:
        clips.append(np.concatenate([decode_chunk(vae, part) for part in clip.transpose(0, 1).split(chunk)]))
    return np.stack(clips)


def decode_chunk(vae: Any, latents: Tensor) -> np.ndarray:
    """Decode unscaled latents in one VAE call: (N, C, h, w) -> uint8 (N, H, W, 3). Raises FloatingPointError."""
    temporal = is_temporal(vae)
    try:
        pixels = vae.decode(latents, **({"num_frames": len(latents)} if temporal else {})).sample
    except RuntimeError as error:
        if temporal or len(latents) == 1 or not is_out_of_memory(error):
            raise
        pixels = None  # retried outside the handler, which keeps alive what the call had allocated
    if pixels is None:
        torch.cuda.empty_cache()
        return np.concatenate([decode_chunk(vae, half) for half in latents.tensor_split(2)])
    if not pixels.isfinite().all():
        raise FloatingPointError(f"the VAE overflows in {vae.dtype}; use float32 or bfloat16")
    return to_frames(pixels)


def check_finite(latents: Tensor) -> None:
    """Raise FloatingPointError if latents (B, C, F, h, w) are NaN or infinite, which would be decoded as black."""
    bad = (~latents.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise FloatingPointError(
            f"sample {', '.join(map(str, bad))} of {len(latents)} came out as NaN or infinity; use another precision "
            "(float32, bfloat16), less guidance, or look at the model's weights"
        )


def frames_that_fit(vae: Any, latents: Tensor) -> int:
    """Number of frames of latents (B, C, N, h, w) that can be decoded at once in the memory now free, at least 1.

    A decoder's peak is at its last level: two inputs and an output, as wide as the level before.
    """
    widths = vae.config.get("block_out_channels") or vae.config.decoder_block_out_channels
    height, width = (side * vae_factor(vae.config) for side in latents.shape[-2:])
    frame = 3 * max(widths[:2]) * height * width * vae.dtype.itemsize
    if vae.device.type == "cuda":  # PyTorch's cache counts as free
        cached = torch.cuda.memory_reserved(vae.device) - torch.cuda.memory_allocated(vae.device)
        return max(1, (torch.cuda.mem_get_info(vae.device)[0] + cached) // frame)
    return max(1, free_memory() // frame)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or a CPU: for a tensor, or for oneDNN's scratch space."""
    phrases = ("can't allocate memory", "could not create a", "could not execute a primitive")
    return isinstance(error, torch.OutOfMemoryError) or any(phrase in str(error) for phrase in phrases)


@torch.no_grad()
def encode_prompts(tokenizer: Any, text_encoder: Any, prompts: Sequence[str]) -> Tensor:
    """Encode prompts to text features (B, T, D), padded to the tokenizer's T = 77 tokens. Warns if a prompt is cut."""
    length = tokenizer.model_max_length
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    for prompt in dict.fromkeys(prompts):
        whole = tokenizer(prompt).input_ids
        if len(whole) > length:
            cut = tokenizer.decode(whole[length - 1 : -1])
            logger.warning("the prompt is longer than %d tokens; this part was cut: %r", length, cut)
    return text_encoder(tokens.input_ids.to(text_encoder.device)).last_hidden_state
