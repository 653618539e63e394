"""Tables of a run by step, OUT/losses.csv and OUT/validation.csv, and means for the summary and the plot."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence

from pipelines.core import storage


def read_rows(output: str, name: str) -> list[dict[str, float]]:
    """Read a table: a row holds "step" and values by name. Returns an empty list when there is no file."""
    text = (storage.read(storage.join(output, name)) or b"").decode()
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(text))]


def write_rows(output: str, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, float]]) -> None:
    """Replace a table. A resumed run passes the rows up to its checkpoint as well."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["step", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "step": int(row["step"])} for row in rows)
    storage.put(storage.join(output, name), text.getvalue().encode())


def read_losses(output: str) -> list[float]:
    """Read the loss of every step so far from losses.csv."""
    return [row["loss"] for row in read_rows(output, "losses.csv")]


def mean(values: list[float]) -> float:
    """Mean of the finite values, NaN when there are none. A bad step's loss is not finite."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def smooth(values: list[float], radius: int = 5) -> list[float]:
    """Moving average: the mean of each value and its neighbours up to `radius` steps away."""
    return [mean(values[max(0, place - radius) : place + radius + 1]) for place in range(len(values))]
