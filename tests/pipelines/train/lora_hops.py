"""A program that trains a LoRA through every ZeRO stage, each of which continues from the checkpoint of the one before.

    python -m tests.pipelines.train.lora_hops FOLDER

Compares losses and weights after each hop with one plain PyTorch loop, which it prints as JSON. A process of its own,
because DeepSpeed sets up torch.distributed for good.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from cinemo import lora
from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from pipelines.train import state
from pipelines.train.config import TrainConfig
from pipelines.train.engine import start_engine, take_step
from tests.tiny import TINY

RATE, DECAY, EACH = 1e-3, 0.9, 1
HOPS = (0, 0, 1, 2, 2, 3, 3, 1)  # ZeRO stages; one that follows itself loads a checkpoint of its own layout


class Folder:
    """The part of Uploads that save_checkpoint uses, for one folder on this disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self) -> str:
        self.path.mkdir()
        return str(self.path)

    def start(self, *_: Any) -> None:
        """Nothing is uploaded."""


def make_unet() -> CinemoUNet:
    torch.manual_seed(0)
    unet = CinemoUNet(**TINY)
    lora.add_adapter(unet, 3, 6, "motion", seed=1)
    return unet.train()


def loss_of(unet: Any, step: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(step)
    clip, noise = (torch.randn((2, 4, frames, 8, 8), generator=draw) for frames in (3, 2))
    text, times = torch.randn((2, 7, 48), generator=draw), torch.randint(0, 1000, (2,), generator=draw)
    return training_loss(unet, clip, text, torch.tensor([3, 9]), times, noise, torch.linspace(0.9, 0.1, 1000))


def plain() -> tuple[list[float], list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Losses of all steps; weights and their average after each step."""
    unet = make_unet()
    weights = dict(state.trained_weights(unet))
    average: dict[str, torch.Tensor] = {}
    optimizer = torch.optim.Adam(weights.values(), lr=RATE)
    losses, after, averages = [], [], []
    for step in range(EACH * len(HOPS)):
        optimizer.zero_grad()
        loss = loss_of(unet, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        decay = min(DECAY, (2 + step) / (11 + step)) if step else 0.0
        average = {name: decay * average.get(name, 0) + (1 - decay) * w.detach() for name, w in weights.items()}
        after.append({name: weight.detach().clone() for name, weight in weights.items()})
        averages.append(average)
    return losses, after, averages


def hop(number: int, stage: int, root: Path) -> tuple[list[float], dict[str, dict[str, torch.Tensor]]]:
    """Continue at a stage; returns the losses of its steps, and the weights and averages of its checkpoint."""
    config = TrainConfig(
        dataset="none", output="none", num_workers=1, total_batch=2, micro_batch=2, zero_stage=stage, lora_rank=3,
        learning_rate=RATE, ema_decay=DECAY,
    )  # fmt: skip
    engine, optimizer = start_engine(config, make_unet(), 1)
    if number:
        state.load_checkpoint(engine, optimizer, config, 1, str(root / str(number - 1)))
    losses = []
    for step in range(number * EACH, (number + 1) * EACH):
        loss = loss_of(engine, step)
        engine.backward(loss)
        take_step(engine, optimizer)
        losses.append(loss.item())
    folder = root / str(number)
    state.save_checkpoint(engine, config, 1, {"steps": (number + 1) * EACH}, Folder(folder))  # type: ignore[arg-type]
    fragments, _ = state.read_fragments(folder)
    return losses, {name: {key: torch.cat(found[key]) for key in ("fp32", "ema")} for name, found in fragments.items()}


def main(root: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    losses, after, averages = plain()
    found = []
    for number, stage in enumerate(HOPS):
        own, saved = hop(number, stage, root)
        last = (number + 1) * EACH - 1
        expected = {"fp32": after[last], "ema": averages[last]}
        assert saved.keys() == after[last].keys(), "a checkpoint holds the adapters and nothing else"
        pairs = [(saved[name][kind], value.flatten()) for kind in expected for name, value in expected[kind].items()]
        found.append({
            "stage": stage,
            "losses": max(abs(a - b) for a, b in zip(own, losses[number * EACH : last + 1], strict=True)),
            "weights": max((a - b).abs().max().item() for a, b in pairs),
            "bytes": sum(path.stat().st_size for path in (root / str(number)).rglob("*.pt")),
        })  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
