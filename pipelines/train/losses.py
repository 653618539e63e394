"""Losses of a run, step by step: OUT/losses.csv, and the means for the summary and the plot."""

import csv
import io
import math
from collections.abc import Sequence

from pipelines.core import storage


def read_losses(output: str) -> list[float]:
    """Read the loss of every step so far from losses.csv; returns an empty list before the first checkpoint."""
    text = (storage.read(storage.join(output, "losses.csv")) or b"step,loss\n").decode()
    return [float(row["loss"]) for row in csv.DictReader(io.StringIO(text))]


def mean(values: list[float]) -> float:
    """Mean of the finite values, NaN when there are none. A bad step's loss is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def smooth(values: list[float], radius: int = 5) -> list[float]:
    """Moving average: the mean of each value and its neighbours up to `radius` steps away."""
    return [mean(values[max(0, place - radius) : place + radius + 1]) for place in range(len(values))]


def csv_lines(losses: Sequence[float]) -> bytes:
    """Contents of losses.csv, with the columns step (from 1) and loss."""
    return ("step,loss\n" + "".join(f"{step},{loss!r}\n" for step, loss in enumerate(losses, 1))).encode()
