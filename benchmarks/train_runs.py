"""Whole runs of the train job: prefetch, a slow upload of a checkpoint, and a resume.

    python benchmarks/train_runs.py [prefetch] [upload] [resume]

One worker and one thread, the built-in model, clips of 16 frames of 128 x 192, batches of 4. prefetch: time of
a step with the default --prefetch against --prefetch 0, on a local disk. upload: seconds that steps wait for a
checkpoint whose upload to an S3 server on localhost takes about 20 s. resume: losses of a run that ended half-way and
was resumed with more --max-steps, against one without a break. Takes about ten minutes on two cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prepare import make_videos, start_job
from timing import Ratio, ratio, report
from train_scale import flat, slow_storage

ROOT = Path(__file__).resolve().parents[1]
CLIPS, BATCH = 16, 4
PREFETCH_STEPS, UPLOAD_STEPS, RESUME_STEPS = 40, 40, 16
REQUEST_S = 2.0  # before every request of an upload, of which a checkpoint has about ten; after 3 s, Arrow gives up
UPLOAD_SHARE = 0.1  # bound: a checkpoint is written to the local disk, which takes less than a tenth of such an upload


def train(dataset: Path, output: str, database: Path, **flags: float) -> dict[str, list[float]]:
    """Run the train job with these flags; returns its metrics in MLflow: name -> values in the order of the steps."""
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{database}"
    settings = {"num-workers": 1, "zero-stage": 0, "total-batch": BATCH, "micro-batch": BATCH, "tracking-uri": uri}
    settings |= {name.replace("_", "-"): value for name, value in flags.items()}
    command = [sys.executable, str(ROOT / "ray_jobs" / "train.py"), f"--dataset={dataset}", f"--output={output}"]
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in settings.items())],
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"the job failed with {done.returncode}: {done.stderr}")
    client, run_id = MlflowClient(uri), json.loads(done.stdout.strip().splitlines()[-1])["run_id"]
    histories = {name: client.get_metric_history(run_id, name) for name in client.get_run(run_id).data.metrics}
    return {
        name: [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
        for name, history in histories.items()
    }


def prefetch(dataset: Path, folder: Path) -> int:
    """Measure the time of a step with prefetch against without, on a local disk: without, with, with, without."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number, name in enumerate(("without", "with", "with", "without")):
        flags = {} if name == "with" else {"prefetch": 0}
        place = folder / f"prefetch-{number}"
        metrics = train(dataset, str(place), folder / "mlflow.db", max_steps=PREFETCH_STEPS, **flags)
        seconds[name].append(BATCH / metrics["clips_per_second"][-1])
    found = ratio(seconds["with"], seconds["without"])
    facts = {"seconds": min(seconds["with"]), "seconds_without": min(seconds["without"]), "bound": 1.0}
    return report("step time with prefetch against without, local disk", found, found.low <= 1.0, **facts)


def upload(dataset: Path, folder: Path) -> int:
    """Measure the seconds that a checkpoint delays the steps when its upload takes 20 s."""
    saved: dict[str, list[float]] = {}
    steps, database = 2 * UPLOAD_STEPS, folder / "mlflow.db"
    with slow_storage(REQUEST_S, "/checkpoints/step_") as server:
        for name, output in (("local", str(folder / "upload")), ("remote", "s3://scale/run")):
            saved[name] = train(dataset, output, database, max_steps=steps, checkpoint_every=UPLOAD_STEPS)[
                "checkpoint_seconds"
            ]
        server.send("waits")
        upload_seconds = server.recv() / 2  # of each checkpoint's requests, which follow one another
    seconds, local = max(saved["remote"]), max(saved["local"])
    facts = {"seconds": seconds, "seconds_local": local, "upload_seconds": upload_seconds, "bound": UPLOAD_SHARE}
    share = flat(seconds / upload_seconds)
    return report("steps delayed by a checkpoint, against its upload", share, share.ratio <= UPLOAD_SHARE, **facts)


def resume(dataset: Path, folder: Path) -> int:
    """Measure the largest difference between the losses of a run that was resumed and of one that was not."""
    train(dataset, str(folder / "whole"), folder / "mlflow.db", max_steps=RESUME_STEPS)
    for steps in (RESUME_STEPS // 2, RESUME_STEPS):
        train(dataset, str(folder / "halves"), folder / "mlflow.db", max_steps=steps)
    whole, halves = (losses(folder / name) for name in ("whole", "halves"))
    worst = max(abs(a - b) for a, b in zip(whole, halves, strict=True))
    facts = {"largest_difference": worst, "steps": len(whole)}
    return report("losses of a resumed run that are equal, step by step", equal(whole, halves), worst == 0.0, **facts)


def losses(output: Path) -> list[float]:
    """The losses of a run, step by step."""
    with open(output / "losses.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def equal(one: Sequence[float], other: Sequence[float]) -> Ratio:
    """Share of steps with equal losses."""
    return flat(sum(a == b for a, b in zip(one, other, strict=True)) / len(one))


PARTS = {"prefetch": prefetch, "upload": upload, "resume": resume}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preparing = start_job(make_videos(folder / "videos", CLIPS), folder / "dataset")
        _, errors = preparing.communicate()
        if preparing.returncode:
            sys.exit(f"preparing failed with {preparing.returncode}: {errors}")
        return max(PARTS[part](folder / "dataset", folder) for part in options.parts or PARTS)


if __name__ == "__main__":
    sys.exit(main())
