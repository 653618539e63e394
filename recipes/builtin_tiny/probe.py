"""What a checkpoint has learned, before one looks at videos: the error of its residuals on photos it never saw.

    python recipes/builtin_tiny/probe.py --out out/tiny

Prints, for each motion, the squared error of the predicted residuals over their square (1 is what no motion gets, 0 is
perfect), and in brackets that of the motion itself: from noise alone, under the right prompt and under the opposite
one, and from noisy residuals. Where the two prompts give one number, the words have no effect yet. Last, for
comparison, the error of the first frame's cells moved by the true motion, with cubic interpolation between them: what a
network gets that knows the motion and nothing of how pictures lie in cells. Takes a minute on one core.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.motion import motion_bucket, motion_score
from cinemo.residual import add_noise, motion_residuals
from cinemo.synthetic import plain_caption
from cinemo.synthetic.plan import Plan, make_plan
from recipes.builtin_tiny.clips import FLOW_SCALE, encode_plans
from recipes.builtin_tiny.evaluate import MOVES
from recipes.builtin_tiny.train_autoencoder import FLOW_CHANNELS
from recipes.builtin_tiny.train_unet import SCHEDULER, load_trained

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in"}
PICTURE, FLOW = slice(-FLOW_CHANNELS), slice(-FLOW_CHANNELS, None)  # channels
FRAMES = (0, 1, 5, 10, 15)
COLUMNS = ((999, False), (999, True), (749, False), (249, False))  # timestep, and whether the prompt is the opposite


def plans_of(kind: str, way: str, count: int, strength: float) -> list[Plan]:
    """Clips of one motion over photos that were never shown."""
    seeds = (seed for seed in range(10_000) if make_plan(seed, kinds=(kind,), held_out=True).direction == way)
    return [make_plan(next(seeds), kinds=(kind,), held_out=True, max_strength=strength) for _ in range(count)]


def share_of(wrong: Tensor, residuals: Tensor) -> float:
    """The squares of what is wrong, over those of the residuals."""
    return float(wrong.square().sum() / residuals.square().sum())


def moved_cells(latents: Tensor) -> Tensor:
    """The first frame's cells, each frame taking them from where its true motion says: the latents (B, C, F, h, w)."""
    rows, columns = latents.shape[-2:]
    size = torch.tensor([columns, rows]).view(1, 2, 1, 1, 1)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    there = torch.stack([x, y])[None, :, None] + latents[:, -FLOW_CHANNELS:][:, :2, 1:] / FLOW_SCALE
    grid = ((there + 0.5) / size * 2 - 1).permute(0, 2, 3, 4, 1)  # of -1..1, x then y
    moved = [
        F.grid_sample(latents[:, :, 0], part, mode="bicubic", padding_mode="border", align_corners=False)
        for part in grid.unbind(1)
    ]
    return torch.stack(moved, dim=2)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--clips", type=int, default=8, metavar="N", help="clips of each move")
    parser.add_argument("--strength", type=float, default=0.4, metavar="S", help="of the strongest motion, 0 to 1")
    arguments = parser.parse_args()
    vae, tokenizer, text_encoder, unet, samples = load_trained(arguments.out)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod

    def error(latents: Tensor, bucket: Tensor, time: int, prompt: str) -> list[float]:
        residuals = motion_residuals(latents)
        noise = torch.randn(residuals.shape, generator=torch.Generator().manual_seed(time))
        noisy = add_noise(residuals, noise, alphas[time].repeat(len(latents)))
        ids = tokenizer([prompt] * len(latents), padding="max_length", return_tensors="pt").input_ids
        text = text_encoder(ids).last_hidden_state
        found = unet(noisy, time, text, latents[:, :, :1], bucket, frame_numbers=torch.tensor(FRAMES)).sample
        return [share_of((found - residuals)[:, part], residuals[:, part]) for part in (PICTURE, FLOW)]

    print(f"{samples} clips seen; frames {FRAMES}; at timestep, under prompt:")
    print(" " * 11, *(f"{time}, {'opposite' if wrong else 'right':9}" for time, wrong in COLUMNS), "moved cells")
    for kind, way in MOVES:
        frames, latents = encode_plans(vae, plans_of(kind, way, arguments.clips, arguments.strength))
        latents = latents[:, :, list(FRAMES)].float()
        bucket = torch.tensor([float(motion_bucket(motion_score(clip))) for clip in frames.numpy()])
        prompts = [(time, plain_caption(kind, OPPOSITE[way] if wrong else way)) for time, wrong in COLUMNS]
        shares = [error(latents, bucket, *prompt) for prompt in prompts]
        cells = (f"{picture:.2f} ({flow:.2f})".ljust(14) for picture, flow in shares)
        wrong = (moved_cells(latents) - latents[:, :, 1:])[:, PICTURE]
        moved = share_of(wrong, motion_residuals(latents)[:, PICTURE])
        print(f"{kind} {way}".ljust(11), *cells, f"{moved:.2f}", flush=True)


if __name__ == "__main__":
    main()
