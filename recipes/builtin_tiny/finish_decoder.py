"""Stage 3: the decoder once more, on what the U-Net says.

What it says of a moved picture is not exact: it is soft, a little of the unmoved picture is left in it, and cells do
not fit each other to the last. The decoder sees neighbouring cells and knows what pictures look like, so it learns to
mend some of that, beside stills, which it must not forget. Knows the U-Net's predictions, and nothing of its training.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cinemo.motion import motion_bucket, motion_score
from cinemo.residual import add_noise, motion_residuals
from cinemo.synthetic.plan import make_plan
from recipes.builtin_tiny.clips import CELL, NUM_FRAMES, SIZE, encode_plans
from recipes.builtin_tiny.common import pick_device
from recipes.builtin_tiny.train_autoencoder import (
    CROP,
    PICTURES,
    Draw,
    load_pictures,
    samples_seen,
    still_crops,
    train_decoder,
)
from recipes.builtin_tiny.train_unet import CURRICULUM, SCHEDULER, load_trained

TIMESTEPS = (999, 749, 499)  # of predictions: all that two sampling steps have, and one between
CAPACITY = 96  # clips
CLIP_STEPS = 8  # steps for every new clip


class Predictions:
    """Clips as the U-Net says them, beside their frames; a new one replaces the oldest."""

    def __init__(self, out: Path) -> None:
        self.vae, self.tokenizer, self.text_encoder, self.unet, _ = load_trained(out)
        for part in (self.vae, self.text_encoder, self.unet):
            part.to(pick_device())
        self.alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(pick_device())
        self.clips: list[tuple[Tensor, Tensor]] = []
        self.made = 0

    @torch.no_grad()
    def add(self, seed: int) -> None:
        """Draw the clip of this number and have the U-Net predict it from a noisy truth: so both show one motion."""
        rng = np.random.default_rng([3, seed])
        lesson = CURRICULUM[-1]
        plan = make_plan(int(rng.integers(2**31)), kinds=lesson.kinds, max_strength=lesson.max_strength * rng.random())
        frames, latents = encode_plans(self.vae, [plan])
        latents = latents.float()
        residuals = motion_residuals(latents)
        bucket = torch.tensor([float(motion_bucket(motion_score(frames[0].cpu().numpy())))]).to(latents)
        ids = self.tokenizer([plan.caption], padding="max_length", truncation=True, return_tensors="pt").input_ids
        text = self.text_encoder(ids.to(latents.device)).last_hidden_state
        time = int(rng.choice(TIMESTEPS))
        noise = torch.randn(residuals.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
        noisy = add_noise(residuals, noise, self.alphas[time][None])
        said = self.unet(noisy, time, text, latents[:, :, :1], bucket).sample
        found = ((latents[:, :, :1] + said) / self.vae.config.scaling_factor)[0].transpose(0, 1)
        pixels = frames[0, 1:].permute(0, 3, 1, 2).to(found) / 127.5 - 1
        self.clips = [*self.clips[-(CAPACITY - 1) :], (found, pixels)]
        self.made += 1

    def crops(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (batch, C, CROP / CELL, CROP / CELL), pixels (batch, 3, CROP, CROP), of any frames but the first."""

        def integer(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        cells = CROP // CELL
        latents, pixels = [], []
        for _ in range(batch):
            said, frames = self.clips[integer(len(self.clips))]
            frame, y, x = (integer(high) for high in (NUM_FRAMES - 1, SIZE[0] // CELL - cells, SIZE[1] // CELL - cells))
            latents.append(said[frame, :, y : y + cells, x : x + cells])
            pixels.append(frames[frame, :, y * CELL : y * CELL + CROP, x * CELL : x * CELL + CROP])
        return torch.stack(latents), torch.stack(pixels)


def beside(stills: Draw, predictions: Predictions, batch: int) -> Draw:
    """Stills, and as many samples more of the U-Net's predictions."""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seed = int(generator.initial_seed())
        if not predictions.clips or seed // (2 * batch) % CLIP_STEPS == 0:
            for number in range(1 if predictions.clips else CLIP_STEPS):
                predictions.add(seed * CLIP_STEPS + number)
        latents, pixels = stills(generator)
        said, frames = predictions.crops(batch, generator)
        return torch.cat([latents, said]), torch.cat([pixels, frames]).contiguous(memory_format=torch.channels_last)

    return draw


def finish_decoder(
    out: Path, minutes: float, total: int, batch: int = 16, lr: float = 1e-4, pictures: int = PICTURES
) -> int:
    """Train the decoder on stills and on predictions, half of each: train_decoder, from the first stage's end."""
    folder = out / "decoder"
    if samples_seen(folder) >= total:
        return samples_seen(folder)
    device = pick_device()
    torch.manual_seed(0)
    predictions = Predictions(out)
    autoencoder = load_trained(out)[0].to(device, memory_format=torch.channels_last).train()
    autoencoder.decoder.requires_grad_(True)
    stills = still_crops(autoencoder, load_pictures(pictures, device), batch // 2)
    return train_decoder(folder, autoencoder, beside(stills, predictions, batch // 2), minutes, total, batch, lr)
