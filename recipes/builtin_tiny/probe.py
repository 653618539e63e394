"""What a checkpoint has learned, before one looks at videos: the error of its residuals on photos it never saw.

    python recipes/builtin_tiny/probe.py --out out/tiny

Prints, for each motion, the squared error of the predicted residuals over their square (1 is what no motion gets, 0 is
perfect): from noise alone, under the right prompt and under the opposite one, and from noisy residuals. Where the two
prompts give one number, the words have no effect yet. Takes a minute on one core.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.motion import motion_bucket, motion_score
from cinemo.residual import add_noise, motion_residuals
from cinemo.synthetic import plain_caption
from cinemo.synthetic.plan import make_plan
from cinemo.synthetic.render import render
from recipes.builtin_tiny.clips import SIZE, encode
from recipes.builtin_tiny.evaluate import MOVES
from recipes.builtin_tiny.train_unet import SCHEDULER, load_trained

OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "in": "out", "out": "in"}
FRAMES = (0, 1, 5, 10, 15)
COLUMNS = ((999, False), (999, True), (749, False), (249, False))  # timestep, and whether the prompt is the opposite


def clips_of(kind: str, way: str, count: int, strength: float) -> Tensor:
    """Clips of one motion: uint8 (count, 16, 128, 192, 3)."""
    seeds = (seed for seed in range(10_000) if make_plan(seed, kinds=(kind,), held_out=True).direction == way)
    plans = [make_plan(next(seeds), kinds=(kind,), held_out=True, max_strength=strength) for _ in range(count)]
    return render(plans, SIZE)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--clips", type=int, default=8, metavar="N", help="clips of each move")
    parser.add_argument("--strength", type=float, default=0.4, metavar="S", help="of the strongest motion, 0 to 1")
    arguments = parser.parse_args()
    vae, tokenizer, text_encoder, unet, samples = load_trained(arguments.out)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod

    def error(clips: Tensor, time: int, prompt: str) -> float:
        latents = encode(vae, clips).float()[:, :, list(FRAMES)]
        bucket = torch.tensor([float(motion_bucket(motion_score(clip))) for clip in clips.numpy()])
        residuals = motion_residuals(latents)
        noise = torch.randn(residuals.shape, generator=torch.Generator().manual_seed(time))
        noisy = add_noise(residuals, noise, alphas[time].repeat(len(latents)))
        ids = tokenizer([prompt] * len(latents), padding="max_length", return_tensors="pt").input_ids
        text = text_encoder(ids).last_hidden_state
        found = unet(noisy, time, text, latents[:, :, :1], bucket, frame_numbers=torch.tensor(FRAMES)).sample
        return float((found - residuals).square().sum() / residuals.square().sum())

    print(f"{samples} clips seen; frames {FRAMES}; at timestep, under prompt:")
    print(" " * 11, *(f"{time}, {'opposite' if wrong else 'right':9}" for time, wrong in COLUMNS))
    for kind, way in MOVES:
        clips = clips_of(kind, way, arguments.clips, arguments.strength)
        shares = [error(clips, time, plain_caption(kind, OPPOSITE[way] if wrong else way)) for time, wrong in COLUMNS]
        print(f"{kind} {way}".ljust(11), *(f"{share:<14.2f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
