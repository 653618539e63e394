"""The catalog job: its throughput against a plain loop, the cost of scheduling, and the time to rerun a finished job.

    python benchmarks/animate.py [throughput|scheduling|rerun] [--rows N] [--repeats 3]

throughput: the command with one replica, on all cores, against a loop over the same calls in one process and one
thread, at the defaults of the built-in model; start-up, the time of the command for ROWS_AT_START rows, is subtracted
and printed. Exits 1 below 1.0.

scheduling: the dataflow over photos of 64 x 64 pixels with a stub instead of the replica, which reports a finished
video at once; catalog, images, ids, claims, listing and gallery are real, start-up counts. Exits 1 below 500 rows a
second, or when all processes' memory in the last third of the run is more than 1.1 times that in the second.

rerun: the same command again over the 10,000 rows of a finished job. Exits 1 at 20 s or more.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from timing import Ratio, ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUND, ROWS_PER_SECOND, GROWTH, RERUN_S = 1.0, 500, 1.1, 20
ROWS_AT_START = 2
MODEL = str(ROOT / "tests" / "golden" / "checkpoint")  # takes any size, and rows are measured, not pixels
ROWS = {"throughput": 40, "scheduling": 100_000, "rerun": 10_000}


def make_catalog(folder: Path, rows: int, side: int, different: int = 64) -> Path:
    """Write a table of `rows` rows over some photos of side x side pixels; each row has its own prompt."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(min(rows, different)):
        cells = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    lines = (
        json.dumps({"image": f"{number % different}.jpg", "prompt": f"the camera moves {number}"})
        for number in range(rows)
    )
    path = folder / "catalog.jsonl"
    path.write_text("\n".join(lines))
    return path


def plain_loop(catalog: Path, output: Path) -> float:
    """Seconds of one thread for all rows: read, fit, encode, sample, decode, measure, write, list."""
    from pipelines.animate import files, flow, listing, plan, records, rows
    from pipelines.animate import job as animate
    from pipelines.animate.config import AnimateConfig
    from pipelines.animate.replica import Animator
    from pipelines.dataset import manifest

    job = animate.resolve(AnimateConfig(catalog=str(catalog), output=str(output)))
    config, model = job.config, job.model
    ledger = flow.Ledger()
    facts = {"model": config.model, "model_fingerprint": model.fingerprint, "model_lineage": model.card.lineage}
    animator = Animator(config, facts, ledger)
    rows.warm_up()
    began = time.perf_counter()
    planned = plan.write(config, model, f"{output}/catalog")
    writer = listing.Writer(config.output, config.ending)
    for part in manifest.slices(planned.files).to_pylist():
        for task in manifest.read_slice(**part):
            ready = rows.prepare(task, plan.made_with(config, model), lambda function, *values: function(*values))
            for table in animator(records.table([ready])):
                writer.add(files.write(table.to_pylist()[0], config.output, config.ending))
    writer.close()
    return time.perf_counter() - began


def command(catalog: Path, output: Path, *flags: str) -> float:
    """Seconds of the whole command. Ends the program if it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "ray_jobs" / "animate.py"), f"--catalog={catalog}", f"--output={output}", *flags],
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the job failed with {done.returncode}: {done.stderr}")
    return time.perf_counter() - began


def throughput(place: Path, rows: int, repeats: int) -> int:
    """Compare the command with one replica to the loop."""
    many, few = make_catalog(place / "many", rows + ROWS_AT_START, 256), make_catalog(place / "few", ROWS_AT_START, 256)
    loops, jobs, starts = [], [], []
    for repeat in range(repeats):
        loops.append(plain_loop(many, place / f"loop{repeat}") * rows / (rows + ROWS_AT_START))
        starts.append(command(few, place / f"few{repeat}", "--max-replicas=1"))
        jobs.append(command(many, place / f"job{repeat}", "--max-replicas=1") - starts[-1])
    measured = ratio(loops, jobs)
    return report(
        f"catalog job with one replica against a loop in one thread, {rows} rows",
        measured,
        passed=measured.ratio >= BOUND,
        bound=BOUND,
        loop_seconds=statistics.median(loops),
        job_seconds=statistics.median(jobs),
        start_up_seconds=statistics.median(starts),
    )


class Stub:
    """Stands in for a replica: treats every video as finished, as though its sidecar had been found."""

    def __init__(self, config: Any, facts: dict[str, Any], ledger: Any) -> None:
        self.facts = facts

    def __call__(self, block: Any) -> Iterator[Any]:
        """Rows with pixels -> rows with the facts of a finished video."""
        from pipelines.animate.records import table

        yield table([self.finished(row) if row["pixels"] is not None else row for row in block.to_pylist()])

    def finished(self, row: dict[str, Any]) -> dict[str, Any]:
        """Add the facts of a finished video to a row."""
        facts = {
            **self.facts,
            "request": json.loads(row["request"]),
            "timings": {"sample_seconds": 0.0, "decode_seconds": 0.0},
            "motion_score": 0.9,
            "motion_bucket": 2,
            "psnr_first_frame": 30.0,
        }
        return {**row, "pixels": None, "facts": json.dumps(facts)}


@contextlib.contextmanager
def watched(samples: list[float], cpu_s: dict[int, float], every_s: float = 2.0) -> Iterator[None]:
    """Collect the sum of proportional set sizes in MB of this process and its descendants, and the CPU time of each."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
                    cpu_s[process.pid] = sum(process.cpu_times()[:2])
            samples.append(total / 1e6)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def stubbed(catalog: Path, output: Path) -> dict[str, Any]:
    """Run the job in this process, with the stub."""
    from pipelines.animate import job as animate
    from pipelines.animate.config import AnimateConfig
    from ray_jobs import common

    config = AnimateConfig(catalog=str(catalog), output=str(output), max_replicas=1, model=MODEL, size="64x64")
    common.connect(2, verbose=False)
    try:
        return animate.run(animate.resolve(config), Stub)
    finally:
        common.disconnect()


def scheduling(place: Path, rows: int, repeats: int) -> int:
    """Measure rows a second with the stub, and memory over the run."""
    catalog = make_catalog(place / "catalog", rows, 64)
    samples: list[float] = []
    cpu_s: dict[int, float] = {}
    began = time.perf_counter()
    with watched(samples, cpu_s):
        summary = stubbed(catalog, place / "out")
    took = time.perf_counter() - began
    assert summary["counts"]["listed"] == rows, summary
    third = len(samples) // 3
    first, last = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
    speed = rows / took
    return report(
        f"catalog job with a stub of the replica, {rows} rows: rows a second, against {ROWS_PER_SECOND}",
        Ratio(*[speed / ROWS_PER_SECOND] * 3),
        passed=speed >= ROWS_PER_SECOND and last <= GROWTH * first,
        rows_per_second=speed,
        cpu_ms_per_row=1000 * sum(cpu_s.values()) / rows,
        memory_growth=last / first,
        peak_mb=max(samples),
    )


def rerun(place: Path, rows: int, repeats: int) -> int:
    """Measure the seconds of the command over a finished job."""
    catalog = make_catalog(place / "catalog", rows, 64)
    stubbed(catalog, place / "out")
    seconds = [
        command(catalog, place / "out", "--max-replicas=1", f"--model={MODEL}", "--size=64x64") for _ in range(repeats)
    ]
    measured = Ratio(*[RERUN_S / value for value in (statistics.median(seconds), max(seconds), min(seconds))])
    return report(
        f"finished catalog job of {rows} rows, run again: {RERUN_S} s against it",
        measured,
        passed=max(seconds) < RERUN_S,
        seconds=statistics.median(seconds),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=[*ROWS, "all"], default="all")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    code = 0
    for name, measure in (("throughput", throughput), ("scheduling", scheduling), ("rerun", rerun)):
        if options.what in (name, "all"):
            with tempfile.TemporaryDirectory() as folder:
                code |= measure(Path(folder), options.rows or ROWS[name], options.repeats)
    return code


if __name__ == "__main__":
    sys.exit(main())
