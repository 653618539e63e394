"""Shared by all benchmarks: interleaved timings, their ratio with its spread, and the report.

A ratio compares two functions timed alternately in one run, so that other load on the machine affects both.

The caller sets the number of threads before numpy or torch load (OMP_NUM_THREADS=1); the report names it.
"""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """Time of the first divided by time of the second: median, minimum and maximum over the repeats."""

    ratio: float
    low: float
    high: float


def compare(functions: dict[str, Callable[[], object]], repeats: int = 5, warm: bool = True) -> dict[str, list[float]]:
    """Time every function `repeats` times, interleaved: a b c, b c a, c a b, ...; returns seconds.

    `warm` calls each once before, untimed. Raises ValueError when there are no functions or no repeats.
    """
    if not functions or repeats < 1:
        raise ValueError(f"{len(functions)} functions and {repeats} repeats time nothing; give at least one of each")
    if warm:
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for repeat in range(repeats):
        first = repeat % len(names)  # rotate, so that no function always meets cold caches
        for name in names[first:] + names[:first]:
            gc.collect()
            began = time.perf_counter()
            functions[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """slow / fast, repeat by repeat, from two lists of `compare`: above 1 when the second is faster."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def machine() -> str:
    """Processor, cores and the thread setting, in one line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    name = (models or [platform.processor() or platform.machine()])[0]
    return f"{name}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}"


def report(name: str, measured: Ratio, passed: bool = True, **facts: Any) -> int:
    """Print one readable line, then a JSON line with the same; returns the exit code, 1 unless `passed`.

    facts: other measurements (numbers or short texts), printed in both lines.
    """
    record = {"name": name, **measured._asdict(), **facts, "passed": passed}
    record |= {"machine": machine(), "load": os.getloadavg()[0]}
    record = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in record.items()}
    others = "".join(f", {key.replace('_', ' ')} {record[key]}" for key in facts)
    print(
        f"{name}: {measured.ratio:.2f}x ({measured.low:.2f} to {measured.high:.2f}){others}; "
        f"{record['machine']}, load {record['load']}"
    )
    print(json.dumps(record), flush=True)
    return 0 if passed else 1
