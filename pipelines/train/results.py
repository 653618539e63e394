"""Results of optimizer steps, which stay on the device until several are read at once.

To read a number from a GPU, the CPU waits for all work before it, and then has no work ready for the GPU.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed

from cinemo.memory import peak_rss
from pipelines.train.config import TrainConfig


class StepResult(NamedTuple):
    """Numbers of one optimizer step; all but data_wait_share are the same on all workers."""

    loss: float  # mean over the clips of the whole batch
    grad_norm: float  # before clipping
    learning_rate: float
    data_wait_share: float  # share of the step's time in which this worker waited for clips


class StepTensors(NamedTuple):
    """Result of one optimizer step, before it is read from the device."""

    step: int  # the first is 1
    loss: torch.Tensor
    grad_norm: torch.Tensor
    learning_rate: float
    data_wait_share: float
    clip_losses: list[tuple[list[str], torch.Tensor]]  # ids and losses of this worker's clips, by accumulation step


def read(steps: Sequence[StepTensors]) -> Iterator[tuple[StepTensors, StepResult]]:
    """Read the numbers of steps from the device, all at once."""
    pairs = [torch.stack((one.loss.float(), one.grad_norm.to(one.loss))) for one in steps]
    for one, (loss, grad_norm) in zip(steps, torch.stack(pairs).tolist() if pairs else [], strict=True):
        yield one, StepResult(loss, grad_norm, one.learning_rate, one.data_wait_share)


def non_finite_clips(step: StepTensors) -> list[str]:
    """Ids of this worker's clips without a finite loss, at a step that has been read."""
    pairs = (zip(ids, losses.tolist(), strict=False) for ids, losses in step.clip_losses)
    return [clip_id for pair in pairs for clip_id, loss in pair if not math.isfinite(loss)]


def clips_to_look_at(step: StepTensors) -> list[str]:
    """Collect, from all workers, the ids of a step's clips without a finite loss; if there is none, of its whole batch.

    Every worker has to call it, after `read`. Clips are not read again: a stream has dropped those of earlier steps.
    """
    every = [name for names, _ in step.clip_losses for name in names]
    return gather(non_finite_clips(step)) or gather(every)


def gather(own: list[str]) -> list[str]:
    """Collect texts of all workers, such as ids, sorted; every worker has to call it."""
    found: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, own)
    return sorted(text for texts in found for text in texts)


def memory_mib(device: torch.device) -> float:
    """Largest memory of this worker so far: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_rss() / 2**20


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step, counted from 0. It needs no state when a run is resumed.

    A linear warm-up, then constant; or half a cosine (Loshchilov and Hutter 2017), or a line, down to min_learning_rate
    at the first step after config.decay_end.
    """
    done = step + 1
    if done < config.warmup_steps or config.lr_schedule == "constant":
        return config.learning_rate * min(1.0, done / max(1, config.warmup_steps))
    way = min(1.0, (done - config.warmup_steps) / (config.decay_end + 1 - config.warmup_steps))
    share = (1 + math.cos(math.pi * way)) / 2 if config.lr_schedule == "cosine" else 1 - way
    return config.min_learning_rate + (config.learning_rate - config.min_learning_rate) * share
