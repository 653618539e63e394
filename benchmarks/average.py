"""The cost of the moving average of the weights: a training step of the built-in model's U-Net with it and without.

`OMP_NUM_THREADS=1 python benchmarks/average.py` prints the ratio of the two, timed side by side, on four clips (the
default micro batch). In memory, weight, gradient and moments are 16 bytes a parameter, and the average is 4 more.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.timing import compare, ratio, report
from cinemo import checkpoint
from cinemo.residual import training_loss
from pipelines.core import models
from pipelines.train.engine import AdamWithAverage


def make_step(decay: float) -> Callable[[], None]:
    """Return a function that takes one optimizer step on four clips of noise, of the model's size and length."""
    source = checkpoint.resolve("builtin:tiny")
    unet = checkpoint.load_unet(source).train()
    optimizer = AdamWithAverage(unet.parameters(), 1e-5, decay)
    schedule = checkpoint.load_scheduler(source)
    generator = torch.Generator().manual_seed(0)
    channels, width = unet.config["in_channels"], unet.config["cross_attention_dim"]
    card = checkpoint.read_card(source)
    assert card.sizes is not None
    assert card.lengths is not None
    cells = [side // models.factor(source) for side in card.sizes[0]]
    latents = torch.randn(4, channels, card.lengths[0], *cells, generator=generator)
    noise = torch.randn(4, channels, card.lengths[0] - 1, *cells, generator=generator)
    text = torch.randn(4, 77, width, generator=generator)
    zero = torch.zeros(4, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        training_loss(unet, latents, text, zero, zero + 500, noise, schedule.alphas_cumprod).backward()
        optimizer.step()

    return step


def main() -> int:
    """Time both, print the ratio; exit code 1 when the average costs more than a tenth of a step."""
    seconds = compare({"with": make_step(0.999), "without": make_step(0.0)}, repeats=15)
    measured = ratio(seconds["with"], seconds["without"])
    return report("training step with the average of the weights", measured, passed=measured.ratio < 1.1)


if __name__ == "__main__":
    sys.exit(main())
