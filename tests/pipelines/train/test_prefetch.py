"""Micro-batches come in the order of the plan, whatever is read first, and no more than a few are read ahead."""

import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pipelines.train.prefetch import MicroBatch, Prefetch

PLAN = [(step, list(range(3 * step, 3 * step + 3))) for step in range(12)]


def draw(step: int, clips: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([step, *clips]),)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_micro_batches_come_in_order_and_no_more_than_allowed_are_read_ahead(
    ahead: int, moments: random.Random
) -> None:
    taken, most, lock = 0, 0, threading.Lock()

    def read(number: int) -> Any:
        nonlocal most
        with lock:
            most = max(most, number // 3 - taken)
        time.sleep(0.003 * moments.random())
        return number

    batches, found = Prefetch(iter(PLAN), read, draw, ahead), []
    for micro_batch in batches:
        found.append(micro_batch)
        taken += 1
    assert [micro_batch.clips for micro_batch in found] == [numbers for _, numbers in PLAN]
    assert [inputs.tolist() for _, (inputs,) in found] == [[step, *numbers] for step, numbers in PLAN]
    assert most <= ahead
    batches.close()


def test_an_error_is_raised_where_its_micro_batch_is_taken() -> None:
    def read(number: int) -> Any:
        if number == 10:
            raise ValueError("part-3.parquet is damaged")
        return number

    batches = Prefetch(iter(PLAN), read, draw, 5)
    assert [len(next(batches).clips) for _ in range(3)] == [3, 3, 3]
    with pytest.raises(ValueError, match=r"part-3.parquet is damaged"):
        next(batches)
    batches.close()


def test_reads_go_on_while_a_step_computes() -> None:
    started = threading.Event()

    def read(number: int) -> Any:
        if number == 3:
            started.set()
        return number

    batches = Prefetch(iter(PLAN), read, draw, 1)
    first: MicroBatch = next(batches)
    assert first.clips == [0, 1, 2]
    assert started.wait(60), "the second micro-batch is read before it is taken"
    batches.close()
