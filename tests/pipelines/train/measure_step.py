"""A program that trains steps of two rounds with the job's own engine, and prints the bytes that they took.

    python -m tests.pipelines.train.measure_step '{"zero_stage": 2}' '{...}' '[1, 4, 8, 32, 32]'

Arguments: TrainConfig's settings, CinemoUNet's, the shape of the latents. The memory is the process's largest resident
size beyond what it had before there was a model. The first step, which makes the optimizer's state, is of tiny latents:
the second one is that of a run under way. A process of its own: the largest is never forgotten, and malloc is told by
its environment to give back at once what is freed.
"""

import json
import os
import socket
import sys

import psutil
import torch

from cinemo import lora
from cinemo.memory import peak_rss
from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from pipelines.train.config import TrainConfig
from pipelines.train.engine import start_engine, take_step


def main(settings: dict[str, object], unet_config: dict[str, object], shape: list[int]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    config = TrainConfig(dataset="none", output="none", num_workers=1, total_batch=2, micro_batch=1, **settings)
    train(config, CinemoUNet(block_out_channels=(32, 32), attention_head_dim=1, **SMALL), [TINY])  # loads libraries
    before = psutil.Process().memory_info().rss
    train(config, CinemoUNet(**unet_config), [TINY, shape])
    print(peak_rss() - before)


TINY = [1, 4, 2, 8, 8]
SMALL = {
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}


def train(config: TrainConfig, unet: CinemoUNet, shapes: list[list[int]]) -> None:
    """One step for each shape of latents."""
    if config.lora_rank is not None:
        lora.add_adapter(unet, config.lora_rank, config.alpha, config.lora_targets)
    engine, optimizer = start_engine(config, unet.train(), 1)
    dtype = next(engine.module.parameters()).dtype

    def call(*inputs: torch.Tensor) -> object:
        return engine(*(value.to(dtype) if value.is_floating_point() else value for value in inputs))

    for shape in shapes:
        batch, channels, frames, *cells = shape
        text = torch.randn(batch, 77, unet.config["cross_attention_dim"])
        ids = torch.zeros(batch, dtype=torch.long)
        for number in range(2):
            clip, noise = torch.randn(shape), torch.randn(batch, channels, frames - 1, *cells)
            engine.backward(training_loss(call, clip, text, ids, ids, noise, torch.linspace(0.9, 0.1, 1000)))
            if number:
                take_step(engine, optimizer)
            else:
                engine.step()


if __name__ == "__main__":
    main(*(json.loads(argument) for argument in sys.argv[1:]))
