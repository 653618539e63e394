"""Batches: clips -> the tensors that the training loss takes (latents, text, motion ids, timesteps and noise).

Every random number derives from a text that names the draw, never from a global state or an order.
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from cinemo import checkpoint
from cinemo.latents import encode_prompts
from cinemo.motion import motion_id
from pipelines.dataset.reader import Clip
from pipelines.train.config import TrainConfig

TextFeatures = Callable[[str], torch.Tensor]  # caption -> text features (T, D)
Inputs = tuple[torch.Tensor, ...]  # (latents, text, motion ids, timesteps, noise) of training_loss, on the CPU


def text_features(source: Path, device: torch.device) -> TextFeatures:
    """Load a text encoder as a function: caption -> features (T, D), float32, on the CPU. Captions are cached."""
    tokenizer, encoder = checkpoint.load_text(source, device=str(device))
    lock = threading.Lock()  # a tokenizer must not be used by two threads at once

    @functools.lru_cache(maxsize=4096)
    def embed(caption: str) -> torch.Tensor:
        with lock:
            return encode_prompts(tokenizer, encoder, [caption])[0].cpu()

    return embed


def draw_batch(
    config: TrainConfig,
    step: int,
    batch: Sequence[Clip],
    embed: TextFeatures,
    motion: dict[str, str],
    num_train_timesteps: int,
) -> Inputs:
    """Draw the inputs of clips at a training step; those of a clip depend on (seed, step, clip id) alone.

    With noise_offset, noise that all cells and frames of a channel share is added ("offset noise", Guttenberg 2023).
    """
    rows = []
    for clip in batch:
        generator = named_generator(f"{config.seed}\n{step}\n{clip.clip_id}")
        timestep = torch.randint(0, num_train_timesteps, (), generator=generator)
        drops_prompt = torch.rand((), generator=generator).item() < config.prompt_drop
        text = embed("") if drops_prompt else caption_features(clip, embed, config.trigger_words)
        latents, text, motion_bucket, timestep, noise = inputs(clip, text, timestep, generator, motion)
        if config.noise_offset:
            noise = noise + config.noise_offset * torch.randn((len(noise), 1, 1, 1), generator=generator)
        rows.append((latents, text, motion_bucket, timestep, noise))
    return stack(rows)


def named_generator(name: str) -> torch.Generator:
    """Make a generator on the CPU that is seeded with a hash of a name."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)


def caption_features(clip: Clip, embed: TextFeatures, trigger_words: str = "") -> torch.Tensor:
    """Text features (T, D) of a clip's caption, with trigger words.

    They are the dataset's, or encoded now where it has none, or trigger words change the caption.
    """
    caption = with_trigger_words(clip.caption, trigger_words)
    if clip.text_embeds is None or caption != clip.caption:
        return embed(caption)
    return torch.from_numpy(clip.text_embeds)


def with_trigger_words(caption: str, words: str) -> str:
    """Put words before a caption that does not contain them."""
    return caption if words in caption else ", ".join(filter(None, [words, caption]))


def inputs(
    clip: Clip, text: torch.Tensor, timestep: torch.Tensor, generator: torch.Generator, motion: dict[str, str]
) -> Inputs:
    """Inputs of one clip, without the batch dimension. The noise is drawn from the generator."""
    latents = torch.from_numpy(np.ascontiguousarray(clip.latents.swapaxes(0, 1)))
    channels, frames, height, width = latents.shape
    noise = torch.randn((channels, frames - 1, height, width), generator=generator)
    return latents, text, torch.tensor(motion_id(clip.bucket, motion)), timestep, noise


def stack(rows: Iterable[Inputs]) -> Inputs:
    """Stack the inputs of single clips into those of a batch."""
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))
