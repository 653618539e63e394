"""A DeepSpeed engine around the U-Net, and one optimizer step of it."""

import math
import os
from typing import Any

import torch

from cinemo.unet import CinemoUNet
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import deepspeed_config
from pipelines.train.ema import AdamWithAverage


def start_engine(config: TrainConfig, unet: CinemoUNet, world_size: int) -> tuple[Any, AdamWithAverage]:
    """Start DeepSpeed; returns (engine, the optimizer that it runs on this worker's share of the weights)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.gpu else "cpu")
    import deepspeed

    if not config.gpu:
        # DeepSpeed would compile its shared-memory collectives now, which takes a minute and needs a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = AdamWithAverage(unet.parameters(), config.learning_rate, config.ema_decay)
    engine, *_ = deepspeed.initialize(model=unet, optimizer=optimizer, config=deepspeed_config(config, world_size))
    return engine, optimizer


def take_step(engine: Any, optimizer: AdamWithAverage) -> float:
    """Take the optimizer's step after the last accumulation step; returns the gradient's norm before clipping.

    A gradient that is not finite changes nothing, on any worker: neither weights nor moments nor average.
    """
    if engine.zero_optimization():
        engine.step()  # skips the step by itself where the gradient is not finite; the norm is then infinite
        return float(engine.get_global_grad_norm())
    gradients = [weight.grad for weight in engine.module.parameters() if weight.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    optimizer.skip = not math.isfinite(norm)
    engine.step()
    optimizer.skip = False
    return norm
