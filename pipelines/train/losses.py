"""Losses of a run, step by step: OUT/losses.csv, and what is drawn of it."""

import csv
import io
import math
from collections.abc import Sequence

from pipelines.core import storage


def read_losses(output: str) -> list[float]:
    """The loss of every step so far, from losses.csv. Empty before the first checkpoint."""
    text = (storage.read(storage.join(output, "losses.csv")) or b"step,loss\n").decode()
    return [float(row["loss"]) for row in csv.DictReader(io.StringIO(text))]


def mean(values: list[float]) -> float:
    """The mean of the finite values: the loss of a bad step is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def smooth(values: list[float], reach: int = 5) -> list[float]:
    """Mean of every value and its neighbours up to `reach` steps away."""
    return [mean(values[max(0, place - reach) : place + reach + 1]) for place in range(len(values))]


def csv_lines(losses: Sequence[float]) -> bytes:
    """losses.csv: step, loss."""
    return ("step,loss\n" + "".join(f"{step},{loss!r}\n" for step, loss in enumerate(losses, 1))).encode()
