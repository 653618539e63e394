"""Clips to the tensors that a loss takes: latents, text, motion, timestep and noise.

What is drawn derives from a text that names the draw, never from a global state or an order. Knows clips and tensors.
Knows nothing of models in training, workers or files.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from cinemo import checkpoint
from cinemo.latents import encode_prompts
from cinemo.motion import motion_id
from pipelines.dataset.reader import Clip
from pipelines.train.config import TrainConfig

Text = Callable[[str], torch.Tensor]
Inputs = tuple[torch.Tensor, ...]  # (latents, text, motion_bucket, timesteps, noise) of training_loss, on the CPU


def text_features(source: Path, device: torch.device) -> Text:
    """A function from caption to text features (T, D), float32 on the CPU; repeated captions are encoded once."""
    tokenizer, encoder = checkpoint.load_text(source, device=str(device))
    return functools.lru_cache(maxsize=4096)(lambda caption: encode_prompts(tokenizer, encoder, [caption])[0].cpu())


def draw_batch(
    config: TrainConfig, step: int, batch: Sequence[Clip], embed: Text, motion: dict[str, str], timesteps: int
) -> Inputs:
    """What some clips are trained with at a step: by (seed, step, clip id) alone."""
    rows = []
    for clip in batch:
        generator = named_generator(f"{config.seed}\n{step}\n{clip.clip_id}")
        chosen = torch.randint(0, timesteps, (), generator=generator)
        drops = torch.rand((), generator=generator).item() < config.prompt_drop
        rows.append(inputs(clip, embed("") if drops else features(clip, embed), chosen, generator, motion))
    return stack(rows)


def named_generator(name: str) -> torch.Generator:
    """A generator on the CPU whose numbers are those of its name."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)


def features(clip: Clip, embed: Text) -> torch.Tensor:
    """The caption's text features (T, D): the prepared ones, else encoded now."""
    return embed(clip.caption) if clip.text_embeds is None else torch.from_numpy(clip.text_embeds)


def inputs(
    clip: Clip, text: torch.Tensor, timestep: torch.Tensor, generator: torch.Generator, motion: dict[str, str]
) -> Inputs:
    """What one clip gives to a batch; the noise is the generator's next numbers."""
    latents = torch.from_numpy(np.ascontiguousarray(clip.latents.swapaxes(0, 1)))
    channels, frames, height, width = latents.shape
    noise = torch.randn((channels, frames - 1, height, width), generator=generator)
    return latents, text, torch.tensor(motion_id(clip.bucket, motion)), timestep, noise


def stack(rows: Iterable[Inputs]) -> Inputs:
    """Clips to a batch."""
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
