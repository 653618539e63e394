"""The loss on clips of videos that are never trained on, by timestep and by motion, and how it is kept.

Every clip is judged at five timesteps, one from each fifth of the schedule. They and the noise derive from the clip's
id alone: two steps, two runs or two models are compared on the same draws, and every fifth has the same number of
losses. The weights are those in training, not their moving average. Knows losses and clips. Knows nothing of engines.
"""

import csv
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed

from cinemo.motion import NUM_BUCKETS
from pipelines.core import storage
from pipelines.dataset import reader
from pipelines.train.batch import Inputs, Text, features, inputs, named_generator, stack

FIFTHS = 5
# Columns of validation.csv and names in MLflow. q1 has the least noise; a bucket without a clip has no number.
TOTAL = "validation_loss"
BY_FIFTH = [f"{TOTAL}_q{fifth + 1}" for fifth in range(FIFTHS)]
BY_BUCKET = [f"{TOTAL}_bucket_{bucket:02d}" for bucket in range(NUM_BUCKETS)]


def draw(pairs: Sequence[tuple[reader.Clip, int]], embed: Text, motion: dict[str, str], timesteps: int) -> Inputs:
    """What clips are judged with, each in one fifth (0 to 4) of the schedule's timesteps."""
    rows = []
    for clip, fifth in pairs:
        generator = named_generator(f"validation\n{fifth}\n{clip.clip_id}")
        low, high = (timesteps * part // FIFTHS for part in (fifth, fifth + 1))
        chosen = torch.randint(low, high, (), generator=generator)
        rows.append(inputs(clip, features(clip, embed), chosen, generator, motion))
    return stack(rows)


@torch.no_grad()
def validate(
    loss_of: Callable[[Inputs], torch.Tensor],
    draw: Callable[[Sequence[tuple[reader.Clip, int]]], Inputs],
    clips: Any,
    numbers: Sequence[int],
    micro_batch: int,
    device: torch.device,
) -> dict[str, float]:
    """Mean losses by the names above; every worker calls it, takes its share, and gets the same numbers.

    loss_of: inputs -> the loss of each clip (B,), from a network in evaluation mode. draw: as above, bound to a model.
    clips[number]: the clip. A clip whose latents are not finite does not count; a mean that is not finite is left out.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    clip_of = functools.lru_cache(maxsize=2)(lambda number: clips[number])  # its fifths come one after another
    items = range(FIFTHS * len(numbers))
    table = torch.zeros((2, FIFTHS, NUM_BUCKETS), dtype=torch.float64)  # sums of losses, and how many they are
    for mine in reader.share(items, rank, world, micro_batch):
        # A worker without an item of its own takes part all the same: sharded weights are gathered from all.
        pairs = [(clip_of(numbers[item // FIFTHS]), item % FIFTHS) for item in mine or items[:1]]
        each = loss_of(draw(pairs))[: len(mine)].tolist()
        for (clip, fifth), loss in zip(pairs, each, strict=False):
            if np.isfinite(clip.latents).all():
                table[:, fifth, clip.bucket] += torch.tensor([loss, 1.0])
    table = table.to(device)
    torch.distributed.all_reduce(table)
    means = {TOTAL: table.sum(dim=(1, 2))}
    means |= dict(zip(BY_FIFTH, table.sum(dim=2).T, strict=True))
    means |= dict(zip(BY_BUCKET, table.sum(dim=1).T, strict=True))
    return {name: float(total / count) for name, (total, count) in means.items() if count and torch.isfinite(total)}


def read_rows(output: str) -> list[dict[str, float]]:
    """What validation.csv holds: "step", and the numbers that there are by their names. Empty when there is no file."""
    text = (storage.read(storage.join(output, "validation.csv")) or b"").decode()
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))]


def write_rows(output: str, rows: Sequence[dict[str, float]]) -> None:
    """validation.csv, whole: a resumed run passes the rows up to its checkpoint."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", TOTAL, *BY_FIFTH, *BY_BUCKET], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "step": int(row["step"])} for row in rows)
    storage.put(storage.join(output, "validation.csv"), text.getvalue().encode())
