"""A training step of `--preset tiny` in bfloat16 against a straightforward loop in float32, and against a LoRA's.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py [--repeats 5]

All take one optimizer step of the built-in model's U-Net on the same four clips of its default size. The loop: the
plain module structure of plain_unet.py, PyTorch's Adam, no average of the weights. The job: its DeepSpeed engine and
optimizer (`--precision bf16 --zero-stage 0`), the average included; once of all weights, once with `--lora-rank 16`.
Exits 1 below twice the clips/s, or if a LoRA's step takes longer than that of all weights. Takes about two minutes.
"""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from plain_unet import PlainUNet
from timing import compare, ratio, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cinemo import checkpoint
from cinemo.residual import training_loss
from pipelines.core import models
from pipelines.train import data
from pipelines.train.config import TrainConfig
from pipelines.train.engine import start_engine, take_step

BOUND, BATCH, RANK = 2.0, 4, 16


def batch_of(source: Path) -> tuple[torch.Tensor, ...]:
    """Draw random (latents, text, motion_bucket, timesteps, noise) of a model's default size."""
    draw = torch.Generator().manual_seed(0)
    config, card = checkpoint.load_unet(source).config, checkpoint.read_card(source)
    assert card.sizes is not None
    assert card.lengths is not None
    channels, frames = config["in_channels"], card.lengths[0]
    cells = [side // models.factor(source) for side in card.sizes[0]]
    return (
        torch.randn(BATCH, channels, frames, *cells, generator=draw),
        torch.randn(BATCH, 77, config["cross_attention_dim"], generator=draw),
        torch.full((BATCH,), 10.0),
        torch.randint(1000, (BATCH,), generator=draw),
        torch.randn(BATCH, channels, frames - 1, *cells, generator=draw),
    )


def plain_step(source: Path, config: TrainConfig, batch: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    """Return a straightforward training step, which returns its loss."""
    unet = checkpoint.load_unet(source)
    plain = PlainUNet(unet.config).train()
    plain.load_state_dict(unet.state_dict(), strict=False)
    optimizer = torch.optim.Adam(plain.parameters(), lr=config.learning_rate)
    alphas = checkpoint.load_scheduler(source, data.prediction_type(config)).alphas_cumprod

    def call(*inputs: torch.Tensor) -> Any:
        return SimpleNamespace(sample=plain(*inputs))

    def step() -> float:
        optimizer.zero_grad()
        loss = training_loss(call, *batch, alphas, data.prediction_type(config))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), config.grad_clip)
        optimizer.step()
        return loss.item()

    return step


def job_step(source: Path, config: TrainConfig, batch: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    """Return a step of the train job's engine, which returns its loss."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    engine, optimizer = start_engine(config, data.load_unet(config), 1)
    alphas = checkpoint.load_scheduler(source, data.prediction_type(config)).alphas_cumprod

    def step() -> float:
        loss = training_loss(engine, *batch, alphas, data.prediction_type(config))
        engine.backward(loss)
        take_step(engine, optimizer)
        return loss.item()

    return step


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    settings: dict[str, Any] = {"dataset": "none", "output": "none", "num_workers": 1, "zero_stage": 0}
    config = TrainConfig(**settings, total_batch=BATCH, micro_batch=BATCH, precision="bf16")
    source = data.directory(config)
    batch = batch_of(source)
    steps = {"plain": plain_step(source, config, batch), "job": job_step(source, config, batch)}
    steps["lora"] = job_step(source, config.model_copy(update={"lora_rank": RANK}), batch)
    losses = {name: step() for name, step in steps.items()}
    seconds = compare(steps, options.repeats, warm=False)
    measured = ratio(seconds["plain"], seconds["job"])
    facts = {
        f"loss_{name}": loss for name, loss in losses.items()
    }  # equal up to rounding, because the weights are the same
    clips = BATCH / sorted(seconds["job"])[options.repeats // 2]
    code = report(
        "training step of the tiny preset in bf16 against a plain float32 loop",
        measured,
        passed=measured.ratio >= BOUND,
        bound=BOUND,
        clips_per_second=clips,
        **facts,
    )
    adapters = ratio(seconds["job"], seconds["lora"])
    what = "training step of all weights of the tiny preset against a LoRA's of rank 16, both in bf16"
    return max(code, report(what, adapters, adapters.ratio >= 1.0, bound=1.0))


if __name__ == "__main__":
    sys.exit(main())
