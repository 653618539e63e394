"""Validation: the loss on clips of videos that are never trained on, by timestep and by motion, and validation.csv.

The loss of each clip is computed at five timesteps, one from each fifth of the schedule. Timesteps and noise derive
from the clip's id alone, so that two steps, two runs or two models are compared on the same draws. The weights are
those in training, not their moving average.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed

from cinemo.motion import NUM_BUCKETS
from pipelines.dataset.reader import Clip, Clips, micro_batches
from pipelines.train.batch import Inputs, TextFeatures, caption_features, inputs, named_generator, stack

FIFTHS = 5
# Columns of validation.csv and names in MLflow. q1 has the least noise; a bucket without clips has no value.
TOTAL = "validation_loss"
BY_FIFTH = [f"{TOTAL}_q{fifth + 1}" for fifth in range(FIFTHS)]
BY_BUCKET = [f"{TOTAL}_bucket_{bucket:02d}" for bucket in range(NUM_BUCKETS)]
TABLE, COLUMNS = "validation.csv", [TOTAL, *BY_FIFTH, *BY_BUCKET]


def draw(
    pairs: Sequence[tuple[Clip, int]],
    embed: TextFeatures,
    motion: dict[str, str],
    num_train_timesteps: int,
    trigger_words: str = "",
) -> Inputs:
    """Draw the inputs of clips, each at a timestep in one fifth (0 to 4) of the schedule."""
    rows = []
    for clip, fifth in pairs:
        generator = named_generator(f"validation\n{fifth}\n{clip.clip_id}")
        low, high = (num_train_timesteps * part // FIFTHS for part in (fifth, fifth + 1))
        timestep = torch.randint(low, high, (), generator=generator)
        rows.append(inputs(clip, caption_features(clip, embed, trigger_words), timestep, generator, motion))
    return stack(rows)


@torch.no_grad()
def validate(
    compute_losses: Callable[[Inputs], torch.Tensor],
    draw: Callable[[Sequence[tuple[Clip, int]]], Inputs],
    clips: Clips,
    held_out: Sequence[int],
    micro_batch: int,
    device: torch.device,
) -> dict[str, float]:
    """Compute mean losses by the names above; every worker calls it, computes its share, and returns the same means.

    compute_losses: inputs -> loss of each clip (B,), from a network in evaluation mode. draw: (clip, fifth) -> inputs.
    held_out: numbers of the clips. micro_batch: largest number of losses that a worker computes at once.
    A clip whose latents are not finite does not count; a mean that is not finite is left out.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    read_clip = functools.lru_cache(maxsize=2)(lambda number: clips[number])  # a clip's fifths come one after another
    table = torch.zeros((2, FIFTHS, NUM_BUCKETS), dtype=torch.float64)  # sums of the losses, and their counts
    for numbers in alike(held_out, clips):
        items = range(FIFTHS * len(numbers))
        for share in micro_batches(items, rank, world_size, micro_batch):
            # A worker without an item of its own computes one all the same: all workers must gather sharded weights.
            pairs = [(read_clip(numbers[item // FIFTHS]), item % FIFTHS) for item in share or items[:1]]
            losses = compute_losses(draw(pairs))[: len(share)].tolist()
            for (clip, fifth), loss in zip(pairs, losses, strict=False):
                if np.isfinite(clip.latents).all():
                    table[:, fifth, clip.bucket] += torch.tensor([loss, 1.0])
    table = table.to(device)
    torch.distributed.all_reduce(table)
    means = {TOTAL: table.sum(dim=(1, 2))}
    means |= dict(zip(BY_FIFTH, table.sum(dim=2).T, strict=True))
    means |= dict(zip(BY_BUCKET, table.sum(dim=1).T, strict=True))
    return {name: float(total / count) for name, (total, count) in means.items() if count and torch.isfinite(total)}


def alike(numbers: Sequence[int], clips: Clips) -> list[list[int]]:
    """Group numbers of clips by shape. Groups are in the order of their first clips."""
    groups: dict[int, list[int]] = {}
    for number in numbers:
        groups.setdefault(clips.shape_index(number), []).append(number)
    return list(groups.values())
