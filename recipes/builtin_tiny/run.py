"""Train the built-in model, or go on training it: the one command of this recipe.

    python recipes/builtin_tiny/run.py --out out/tiny --minutes 9

Does what is due next: the autoencoder until it has seen its share, then the U-Net, then the decoder once more; every
call continues where the last one stopped. Knows what fits a CPU and what fits a GPU.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from recipes.builtin_tiny.common import pick_device
from recipes.builtin_tiny.export import load_pipeline, write_sheet
from recipes.builtin_tiny.finish_decoder import finish_decoder
from recipes.builtin_tiny.train_autoencoder import train_autoencoder
from recipes.builtin_tiny.train_unet import train_unet


@dataclass(frozen=True)
class Plan:
    """How much of everything. Samples are counted from the very start, over all calls."""

    autoencoder_samples: int
    autoencoder_batch: int
    unet_samples: int
    unet_batch: int
    decoder_samples: int  # on what the U-Net says
    reuse: float  # uses of a clip: making one is dear on a CPU and cheap on a GPU


PLANS = {
    "cpu": Plan(
        autoencoder_samples=60_000,
        autoencoder_batch=16,
        unet_samples=32_000,
        unet_batch=1,
        decoder_samples=20_000,
        reuse=6,
    ),
    "cuda": Plan(
        autoencoder_samples=500_000,
        autoencoder_batch=64,
        unet_samples=1_000_000,
        unet_batch=64,
        decoder_samples=200_000,
        reuse=3,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints, logs and sheet")
    parser.add_argument("--minutes", type=float, required=True, help="stop after so long, and be continued later")
    arguments = parser.parse_args()
    out, deadline = arguments.out, time.monotonic() + 60 * arguments.minutes
    out.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    plan = PLANS[device.type]

    def minutes_left() -> float:
        return (deadline - time.monotonic()) / 60

    seen = train_autoencoder(out, minutes_left(), plan.autoencoder_samples, plan.autoencoder_batch)
    print(f"autoencoder: {seen} of {plan.autoencoder_samples} samples", flush=True)
    if seen < plan.autoencoder_samples or minutes_left() < 0:
        return
    seen = train_unet(out, minutes_left(), plan.unet_samples, plan.unet_batch, plan.reuse)
    print(f"unet: {seen} of {plan.unet_samples} samples", flush=True)
    if seen >= plan.unet_samples and minutes_left() > 0:
        seen = finish_decoder(out, minutes_left(), plan.decoder_samples, plan.autoencoder_batch)
        print(f"decoder: {seen} of {plan.decoder_samples} samples", flush=True)
    write_sheet(load_pipeline(out, device), out / "sheet.png")


if __name__ == "__main__":
    main()
