"""The reference for training: one process, plain PyTorch, no Ray and no DeepSpeed, the whole batch at once."""

import math
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cinemo import checkpoint
from cinemo.motion import UNIFORM_MOTION
from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from pipelines.dataset import reader
from pipelines.train import data
from pipelines.train.batch import draw_batch, text_features
from pipelines.train.config import TrainConfig
from pipelines.train.results import learning_rate
from tests.tiny import TINY


@dataclass
class Plain:
    """Results of a plain run. weights, average: of the U-Net after the last step, by name.

    kept: both, after each of the steps in `keep`; the first step is 1.
    """

    losses: list[float]
    start: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    kept: dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]

    def distance(self, weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
        """Distance of weights from the expected ones, as a share of the distance that training moved them."""

        def length(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
            return math.sqrt(sum((ours[name] - theirs[name]).double().square().sum().item() for name in self.start))

        return length(weights, expected) / length(expected, self.start)


def run_plain(config: TrainConfig, steps: int, clips: Any = None, keep: Collection[int] = ()) -> Plain:
    """Take the first steps of a run. A step whose loss is not finite changes nothing; held-out clips are not read.

    clips: by default those of the dataset. keep: steps after which weights and average are kept.
    """
    source = data.directory(config)
    unet = data.load_unet(config)
    start = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    average = {name: weight.clone() for name, weight in start.items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = checkpoint.load_scheduler(source, data.prediction_type(config))
    clips = clips or reader.ClipReader(config.dataset, config.validation_share)
    embed = text_features(source, torch.device("cpu"))
    losses: list[float] = []
    taken, kept = 0, {}

    def copied() -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in unet.named_parameters()}

    for step in range(steps):
        positions = clips.positions(config.total_batch, config.seed, step)
        batch = [clips[position] for position in positions]
        inputs = draw_batch(config, step, batch, embed, UNIFORM_MOTION, 1000)
        loss = training_loss(unet, *inputs, schedule.alphas_cumprod, min_snr_gamma=config.min_snr_gamma)
        losses.append(loss.item())
        if math.isfinite(losses[-1]):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
            optimizer.param_groups[0]["lr"] = learning_rate(config, step)
            optimizer.step()
            taken += 1
            decay = min(config.ema_decay, (1 + taken) / (10 + taken)) if taken > 1 else 0
            for name, weight in unet.named_parameters():
                average[name] = decay * average[name] + (1 - decay) * weight.detach()
        if step + 1 in keep:
            kept[step + 1] = (copied(), dict(average))
    return Plain(losses, start, copied(), average, kept)


def exported(model: str | Path) -> dict[str, torch.Tensor]:
    """Load the weights of a model directory's U-Net, by name."""
    return {name: weight.detach() for name, weight in checkpoint.load_unet(model).named_parameters()}


def small_config(prepared: str, folder: Path) -> TrainConfig:
    """A run from nothing with the smallest U-Net, gentle enough for 30 steps to agree to rounding.

    Adam's first steps are the gradient's signs: at a higher rate, a difference in the last bit grows tenfold in two
    steps. folder: gets the model directory, with all but the U-Net of the built-in one; `output` is for each test to
    set.
    """
    components = folder / "components"
    if not components.exists():
        builtin = checkpoint.resolve("builtin:tiny")
        shutil.copytree(builtin, components, ignore=shutil.ignore_patterns("unet"))
        widths = CinemoUNet.load_config(builtin / "unet")
        same = {name: widths[name] for name in ("in_channels", "out_channels", "cross_attention_dim")}
        CinemoUNet(**{**TINY, **same}).save_pretrained(components / "unet")
    return TrainConfig(
        dataset=prepared,
        output="unset",
        init="none",
        components=str(components),
        max_steps=30,
        total_batch=4,
        micro_batch=2,
        learning_rate=2e-4,
        warmup_steps=5,
        ema_decay=0.9,
        validation_share=0.0,
    )
