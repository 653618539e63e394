"""Training on Ray Train with a DeepSpeed engine: the run as the driver sees it, and its results.

Knows Ray Train, progress, and what is left of a run. What it takes and refuses is training/config.py, what a worker
does training/loop.py. Settings that change the run are kept beside it, so that the same command goes on from the last
checkpoint and another one is refused.
"""

import csv
import io
import math
import threading
import time
from typing import Any

from cinemo import checkpoint
from pipelines import models, plots, storage, tracking
from pipelines.progress import to_stderr
from pipelines.training import data
from pipelines.training.config import TrainConfig, check, placed, settings


class Mailbox:
    """Remarks and the newest line of progress, left by a worker and fetched by the driver, wherever each of them is."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.line: str | None = None

    def put(self, line: str) -> None:
        """Leave a line of progress, in place of one that was not fetched."""
        self.line = line

    def remark(self, line: str) -> None:
        """Leave a line that is shown whatever comes after it."""
        self.remarks.append(line)

    def take(self) -> list[str]:
        """Fetch the lines, once."""
        lines = [*self.remarks, *([self.line] if self.line else [])]
        self.remarks, self.line = [], None
        return lines


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training; returns the summary. Needs a running Ray; raises ValueError as check does."""
    config = placed(config)
    check(config)
    output, began = config.output, time.monotonic()
    found = data.describe(config)
    with tracking.start("train", output, config.tracking_uri, config.model_dump()) as log:
        log.tags({"dataset_fingerprint": found["fingerprint"], "init": config.init})
        log.came_from("prepare", "dataset_fingerprint", found["fingerprint"])
        if config.has_model:
            log.came_from("train", tracking.FINGERPRINT, checkpoint.fingerprint(config.source))
        storage.put_json(storage.join(output, "settings.json"), settings(config))
        result = already_done(config) or fit(config, output, log)
        if "stopped" in result:
            raise RuntimeError(result["stopped"])
        storage.put_json(storage.join(output, "result.json"), {"steps": config.max_steps, **result})
        losses = read_losses(output)
        picture = plots.curve(losses, smooth(losses), "step", "loss")
        storage.put(storage.join(output, "loss.png"), picture)
        log.picture("loss.png", picture)
        model, fingerprint = storage.join(output, "model"), result["model_fingerprint"]
        log.tags({tracking.FINGERPRINT: fingerprint, "model": model})
        registered = None
        if config.register_as is not None:
            tags = {tracking.FINGERPRINT: fingerprint, "dataset_fingerprint": found["fingerprint"]}
            registered = models.register(config.register_as, model, tags, log)
    return {
        "job": "train",
        "output": output,
        "model": model,
        "registered": registered,
        "steps": len(losses),
        "loss_first_20": round(mean(losses[:20]), 5),
        "loss_last_20": round(mean(losses[-20:]), 5),
        "validation_loss": result["validation_loss"],
        "bad_steps": result["bad_steps"],
        "dataset_fingerprint": found["fingerprint"],
        "model_fingerprint": fingerprint,
        "run_id": log.run_id,
        "seconds": round(time.monotonic() - began, 2),
    }


def already_done(config: TrainConfig) -> dict[str, Any] | None:
    """What fit returned when these very steps were done before; None when there is something left to do."""
    found = storage.read_json(storage.join(config.output, "result.json"))
    there = storage.exists(storage.join(config.output, "model", checkpoint.CARD_NAME))
    return found if there and found is not None and found["steps"] == config.max_steps else None


def fit(config: TrainConfig, output: str, log: tracking.Log) -> dict[str, Any]:
    """Run the workers to the last step; returns what rank 0 returned. Raises what a worker raised once too often."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.training.loop import loop

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    stream = data.start(config, output)
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            "config": config.model_dump(),
            "output": output,
            "mailbox": mailbox,
            "stream": stream,
            "tracking": (log.uri, log.run_id),
        },
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers[0] if config.workers[0] == config.workers[1] else config.workers,
            elastic_resize_monitor_interval_s=config.resize_every,
            use_gpu=config.gpu,
        ),
        # The same name in the same place: Ray Train finds the last checkpoint there, and hands it to the workers.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    finished = threading.Event()

    def show() -> None:
        over = False
        while not over:
            over = finished.wait(1.0)
            for line in ray.get(mailbox.take.remote()):
                to_stderr(line)

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        return trainer.fit().return_value
    finally:
        finished.set()
        watcher.join(timeout=5)
        if stream is not None:
            ray.kill(stream)


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
