"""Training clips made while training: drawn, scored and encoded on the training device, and used a few times each.

Knows synthetic plans, SSIM in torch and the VAE. Knows nothing of the U-Net. There is no data set on disk.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor
from transformers import CLIPTokenizer

from cinemo.motion import motion_bucket, motion_score
from cinemo.residual import motion_residuals
from cinemo.synthetic.plan import Plan, make_plan
from cinemo.synthetic.render import camera_view, render
from recipes.builtin_tiny.train_autoencoder import FLOW_CHANNELS

SIZE, NUM_FRAMES = (128, 192), 16  # what the built-in model is made for
CELL = 8  # pixels a latent cell, per side
ENCODE_CHUNK = 64  # frames a VAE call
FLOW_SCALE = 16.0  # what a displacement of one cell is in the latents: of the size of what they say of the picture


@dataclass
class Batch:
    """latents: (B, C, N, h, w), scaled. tokens: int64 (B, 77). bucket: (B,). size: (B,), see ClipPool."""

    latents: Tensor
    tokens: Tensor
    bucket: Tensor
    size: Tensor


def mean_ssim(frames: Tensor) -> Tensor:
    """cinemo.motion.motion_score of many clips at once: uint8 (B, N, H, W, 3) -> float32 (B,), within 1e-3.

    scikit-image takes 50 ms a clip on one core, as long as a training step.
    """
    pixels = frames.permute(0, 1, 4, 2, 3).float()
    means = F.avg_pool2d(pixels.flatten(0, 2)[:, None], 7, stride=1)
    squares = F.avg_pool2d(pixels.flatten(0, 2)[:, None] ** 2, 7, stride=1)
    products = F.avg_pool2d((pixels[:, :-1] * pixels[:, 1:]).flatten(0, 2)[:, None], 7, stride=1)
    batch, count = frames.shape[:2]
    means, squares = means.view(batch, count, -1), squares.view(batch, count, -1)
    a, b = means[:, :-1], means[:, 1:]
    unbiased = 49 / 48  # sample covariance over a 7 x 7 window, as scikit-image has it
    variance = unbiased * (squares - means**2)
    covariance = unbiased * (products.view(batch, count - 1, -1) - a * b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * a * b + c1) * (2 * covariance + c2)
    ssim = ssim / ((a**2 + b**2 + c1) * (variance[:, :-1] + variance[:, 1:] + c2))
    return ssim.mean(dim=(1, 2)).clamp(max=1.0)


@torch.no_grad()
def encode(vae: AutoencoderDC, frames: Tensor) -> Tensor:
    """uint8 (B, N, H, W, 3) -> scaled latents (B, C, N, h, w) in float16."""
    pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    parts = [vae.encode(part).latent for part in pixels.split(ENCODE_CHUNK)]
    latents = torch.cat(parts).float() * vae.config.scaling_factor
    return latents.half().unflatten(0, frames.shape[:2]).transpose(1, 2)


def clip_flow(plan: Plan, num_frames: int = NUM_FRAMES) -> Tensor:
    """How the camera of a clip has moved, in each frame and cell: (FLOW_CHANNELS, N, h, w).

    Where the cell looks in the first frame, less where it lies, in cells, x then y; how much these grow over a frame's
    height, outwards from any cell and around it. Objects and veils that move over the picture are not in it.
    """
    rows, columns = (length // CELL for length in SIZE)
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5 - rows / 2) / rows, (torch.arange(columns) + 0.5 - columns / 2) / rows, indexing="ij"
    )
    there = camera_view(plan, torch.arange(num_frames).float(), x, y)
    across, down = (there[0] - x) * rows, (there[1] - y) * rows
    (across_by_y, across_by_x), (down_by_y, down_by_x) = (torch.gradient(part, dim=(1, 2)) for part in (across, down))
    outwards, around = (across_by_x + down_by_y) / 2 * rows, (down_by_x - across_by_y) / 2 * rows
    return torch.stack([across, down, outwards, around])


@torch.no_grad()
def encode_plans(vae: AutoencoderDC, plans: list[Plan]) -> tuple[Tensor, Tensor]:
    """Clips drawn and encoded: uint8 frames (B, N, H, W, 3), and scaled latents (B, C, N, h, w) in float16 whose last
    channels, which the encoder leaves at zero, say how the camera moved."""
    frames = render(plans, SIZE, NUM_FRAMES, device=vae.device)
    latents = encode(vae, frames)
    flow = torch.stack([clip_flow(plan) for plan in plans]) * FLOW_SCALE
    latents[:, -FLOW_CHANNELS:] = flow.to(latents)
    return frames, latents


class ClipPool:
    """The newest clips, as latents: grows by a few clips a step up to its capacity, then replaces the oldest.

    Making a clip costs about as much as a training step on it, so on a CPU each is used several times. Clips are whole:
    a zoom is seen only beside the picture's borders.
    """

    def __init__(
        self,
        vae: AutoencoderDC,
        tokenizer: CLIPTokenizer,
        kinds: tuple[str, ...],
        max_strength: float,
        flow_weight: float,
        capacity: int,
    ) -> None:
        self.vae, self.tokenizer, self.kinds, self.max_strength = vae, tokenizer, kinds, max_strength
        self.capacity, self.device = capacity, vae.device
        shape = (capacity, vae.config.latent_channels, NUM_FRAMES, SIZE[0] // CELL, SIZE[1] // CELL)
        self.latents = torch.zeros(shape, dtype=torch.float16, device=self.device)
        self.tokens = torch.zeros(capacity, tokenizer.model_max_length, dtype=torch.int64, device=self.device)
        self.bucket = torch.zeros(capacity, device=self.device)
        self.weights = torch.ones(vae.config.latent_channels, device=self.device)
        self.weights[-FLOW_CHANNELS:] = flow_weight
        # The weighted mean square of each frame's residuals, of the first clips made; and of each clip's, beside that.
        self.energy = torch.zeros(NUM_FRAMES, device=self.device)
        self.size = torch.zeros(capacity, device=self.device)
        self.made = 0

    def add(self, count: int, first_seed: int) -> None:
        """Make `count` clips, seeds first_seed and following."""
        limits = self.max_strength * np.random.default_rng(first_seed).random(count)  # small motions are more frequent
        plans = [
            make_plan(first_seed + i, kinds=self.kinds, max_strength=float(limit)) for i, limit in enumerate(limits)
        ]
        frames, latents = encode_plans(self.vae, plans)
        slots = (torch.arange(count) + self.made).remainder(self.capacity).to(self.device)
        self.latents[slots] = latents
        if self.device.type == "cuda":
            scores = mean_ssim(frames).tolist()
        else:
            scores = [motion_score(clip) for clip in frames.numpy()]  # on a CPU scikit-image is the faster of the two
        self.bucket[slots] = torch.tensor([float(motion_bucket(score)) for score in scores], device=self.device)
        captions = [plan.caption for plan in plans]
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.tokens[slots] = ids.to(self.device)
        squares = motion_residuals(latents.float()).square() * self.weights.view(1, -1, 1, 1, 1)
        squares = squares.mean(dim=(1, 3, 4))
        if not self.made:
            self.energy[1:] = squares.mean(dim=0)
        self.size[slots] = (squares / self.energy[1:]).mean(dim=1)
        self.made += count

    def draw(self, batch: int, frames: list[int], rng: np.random.Generator) -> Batch:
        """A random batch of the clips that are there, with only these of their frames."""
        index = torch.from_numpy(rng.integers(min(self.made, self.capacity), size=batch)).to(self.device)
        return Batch(
            self.latents[index][:, :, frames].float(), self.tokens[index], self.bucket[index], self.size[index]
        )
