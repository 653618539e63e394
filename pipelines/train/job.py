"""Training on Ray Train with a DeepSpeed engine: the run as the driver sees it, and its results.

Knows Ray Train, progress, and what is left of a run. What it takes and refuses is config.py, what a worker
does trainer.py. Settings that change the run are kept beside it, so that the same command goes on from the last
checkpoint and another one is refused.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinemo import checkpoint
from cinemo.motion import SCORE_DEFINITION
from pipelines.core import models, plots, storage, tracking
from pipelines.core.output import Output
from pipelines.core.progress import to_stderr
from pipelines.dataset import reader
from pipelines.prepare.config import ExtractConfig
from pipelines.train import data, weights
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import check_deepspeed
from pipelines.train.losses import mean, read_losses, smooth

# Flags that a run may change when it goes on: they say how and where it is computed, not what.
FREE = {
    "output", "max_steps", "checkpoint_every", "max_failures", "tracking_uri", "zero_stage", "num_workers",
    "resize_every", "micro_batch", "gpu", "gradient_checkpointing", "offload_optimizer", "offload_params", "deepspeed",
    "max_bad_steps", "register_as", "validate_every", "validation_clips", "sample_every",
}  # fmt: skip


class Reporter:
    """Remarks and the newest line of progress, left by a worker and fetched by the driver, wherever each of them is."""

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.line: str | None = None

    def report(self, line: str) -> None:
        """Leave a line of progress, in place of one that was not fetched."""
        self.line = line

    def log(self, line: str) -> None:
        """Leave a line that is shown whatever comes after it."""
        self.remarks.append(line)

    def take(self) -> list[str]:
        """Fetch the lines, once."""
        lines = [*self.remarks, *([self.line] if self.line else [])]
        self.remarks, self.line = [], None
        return lines


def placed(config: TrainConfig) -> TrainConfig:
    """The same run, by names that mean the same to workers, who have other working directories. Raises ValueError."""
    paths = {name: storage.absolute(getattr(config, name)) for name in ("dataset", "output")}
    for name in ("init", "components"):
        paths[name] = models.absolute(getattr(config, name), config.tracking_uri, paths["output"])
    return config.model_copy(update=paths)


def identity(config: TrainConfig, found: dict[str, Any]) -> dict[str, Any]:
    """Everything that a resumed run must share with its beginning, by the name of its flag.

    config: placed. found: dataset.json.
    """
    chosen = config.model_dump(exclude={*FREE, "stream", "dataset"})
    if data.is_stream(config.dataset):
        fields = ExtractConfig.model_fields
        chosen |= {f"stream.{name}": value for name, value in found.items() if name in fields}
    chosen["init"] = models.plain(config.init)
    chosen["dataset"] = found["fingerprint"]
    chosen["components"] = models.fingerprint(weights.directory(config))
    return chosen


@dataclass(frozen=True)
class Job:
    """A configuration that can work, by names that mean the same to every process, and what was read to know it."""

    config: TrainConfig
    dataset: dict[str, Any]  # dataset.json, or of videos what it would say
    identity: dict[str, Any]  # everything that a resumed run must share with its beginning, by the name of its flag


def resolve(config: TrainConfig) -> Job:
    """Refuse what cannot work, before a cluster is touched: raises ValueError naming the flag and what it met."""
    check_deepspeed(config)
    config = placed(config)
    data.check(config)
    found = data.describe(config)
    check_dataset(config, found)
    job = Job(config, found, identity(config, found))
    Output(config.output).check(job.identity)
    if config.init.startswith("lavie:") and not Path(config.init.removeprefix("lavie:")).is_file():
        raise ValueError(f"--init {config.init} names no file; give lavie:PATH with the path of lavie_base.pt")
    return job


def check_dataset(config: TrainConfig, found: dict[str, Any]) -> None:
    """Refuse a dataset that does not fit the model; `found` is its dataset.json. Raises ValueError."""
    if found["score_only"]:
        raise ValueError(f"--dataset {config.dataset} holds scores and no latents; prepare it without --score-only")
    source = weights.directory(config)
    card = checkpoint.read_card(source)
    name = config.init if config.has_model else config.components
    same = {"vae_fingerprint": models.fingerprint(source / checkpoint.vae_name(source))}
    if found["text_fingerprint"] is not None:
        same["text_fingerprint"] = models.fingerprint(source / "text_encoder")
    # A model of the official layout does not say how its score was defined: there is nothing to compare.
    score = card.motion.get("score") if config.has_model else SCORE_DEFINITION
    if score is not None:
        same["score_definition"] = score
    for what, value in same.items():
        if found[what] != value:
            raise ValueError(
                f"--dataset {config.dataset} was made with {what} {found[what]}, but {name} has {value}; "
                f"prepare it with --model {name}, or train from the model it was made with"
            )
    size = (found["height"], found["width"])
    if config.has_model and card.sizes and size not in card.sizes:
        raise ValueError(
            f"--dataset {config.dataset} is {size[0]} x {size[1]}, but {name} takes {card.sizes}; "
            "prepare it at one of these"
        )
    if config.has_model and card.lengths and found["num_frames"] not in card.lengths:
        raise ValueError(
            f"--dataset {config.dataset} has clips of {found['num_frames']} frames, but {name} takes {card.lengths}; "
            "prepare it with one of these as --num-frames"
        )
    if "counts" in found and found["counts"]["clips"] < config.total_batch:
        raise ValueError(
            f"--dataset {config.dataset} has {found['counts']['clips']} clips, fewer than --total-batch "
            f"{config.total_batch}; prepare more (--clips-per-video) or lower it"
        )
    if "counts" in found and config.validation_share:
        count = reader.count_clips(config.dataset, config.validation_share, config.total_batch)
        if count < config.total_batch:
            raise ValueError(
                f"--dataset {config.dataset} has {found['counts']['clips']} clips, of which --validation-share "
                f"{config.validation_share} leaves {count} to train on, fewer than --total-batch "
                f"{config.total_batch}; prepare more videos, or lower one of the two"
            )


def run(job: Job) -> dict[str, Any]:
    """Train, or go on training; returns the summary. Needs a running Ray."""
    config, found = job.config, job.dataset
    output, began = config.output, time.monotonic()
    with tracking.start("train", output, config.tracking_uri, config.model_dump()) as log:
        log.tags({"dataset_fingerprint": found["fingerprint"], "init": config.init})
        log.came_from("prepare", "dataset_fingerprint", found["fingerprint"])
        if config.has_model:
            log.came_from("train", tracking.FINGERPRINT, models.fingerprint(weights.directory(config)))
        storage.put_json(storage.join(output, "settings.json"), job.identity)
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

    from pipelines.train.trainer import loop

    reporter = ray.remote(num_cpus=0)(Reporter).remote()
    stream = data.start(config, output)
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            "config": config.model_dump(),
            "output": output,
            "reporter": reporter,
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
            for line in ray.get(reporter.take.remote()):
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
