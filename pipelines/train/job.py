"""The driver of the train job: checks the settings, starts Ray Train, shows progress, and writes the results.

Flags are in config.py, the training loop of a worker in trainer.py. Settings that determine the result are stored with
the run, so that the same command continues from the last checkpoint and one with other settings is refused.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinemo import checkpoint, lora
from cinemo.motion import SCORE_DEFINITION
from pipelines.core import lease, models, plots, storage, tracking
from pipelines.core.output import Output
from pipelines.core.progress import to_stderr
from pipelines.dataset import reader
from pipelines.prepare import flow
from pipelines.prepare.config import ExtractConfig
from pipelines.train import data
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import check_deepspeed
from pipelines.train.losses import mean, read_losses, smooth

# Flags that may change when a run is resumed: they set how and where it is computed, not its result.
CHANGEABLE = {
    "output", "max_steps", "checkpoint_every", "max_failures", "tracking_uri", "zero_stage", "num_workers",
    "resize_every", "micro_batch", "gpu", "gradient_checkpointing", "offload_optimizer", "offload_params", "deepspeed",
    "max_bad_steps", "register_as", "validate_every", "validation_clips", "sample_every", "log_every", "compile",
    "prefetch",
}  # fmt: skip
# Flags that outputs of earlier versions do not name; they were made with the defaults.
LATER = {
    "lr_schedule", "decay_steps", "min_learning_rate", "weight_decay", "min_snr_gamma", "noise_offset",
    "balance_buckets", "lora_rank", "lora_alpha", "lora_targets", "trigger_words",
}  # fmt: skip


class Reporter:
    """Actor that passes log lines and the newest line of progress from a worker to the driver."""

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.progress: str | None = None

    def report(self, line: str) -> None:
        """Set the line of progress, which replaces one that was not fetched."""
        self.progress = line

    def log(self, line: str) -> None:
        """Add a line that is always shown."""
        self.logged.append(line)

    def take(self) -> list[str]:
        """Fetch the new lines."""
        lines = [*self.logged, *([self.progress] if self.progress else [])]
        self.logged, self.progress = [], None
        return lines


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Make paths and model names absolute, because workers have other working directories. Raises ValueError."""
    paths = {name: storage.absolute(getattr(config, name)) for name in ("dataset", "output")}
    for name in ("init", "components"):
        paths[name] = models.absolute(getattr(config, name), config.tracking_uri, paths["output"])
    return config.model_copy(update=paths)


def with_precision(config: TrainConfig) -> TrainConfig:
    """Replace --precision auto by the run's own precision if that is fp32 or bf16, else by that for its devices."""
    if config.precision != "auto":
        return config
    begun = (storage.read_json(storage.join(config.output, "settings.json")) or {}).get("precision")
    return config.model_copy(update={"precision": begun if begun in ("fp32", "bf16") else config.arithmetic})


def identity(config: TrainConfig, description: dict[str, Any]) -> dict[str, Any]:
    """Settings that a resumed run must have in common with its beginning, by the name of the flag.

    config: with absolute paths. description: dataset.json.
    """
    settings = config.model_dump(exclude={*CHANGEABLE, "stream", "dataset"})
    if config.lr_schedule != "constant":  # a run that is made longer would have another learning rate at each step
        settings["decay_steps"] = config.decay_end
    if data.is_stream(config.dataset):
        fields = ExtractConfig.model_fields
        settings |= {f"stream.{name}": value for name, value in description.items() if name in fields}
    settings["init"] = models.plain(config.init)
    settings["dataset"] = description["fingerprint"]
    settings["drawn_up_to"] = data.drawn_up_to(config.output)
    settings["components"] = models.fingerprint(data.directory(config))
    return settings


@dataclass(frozen=True)
class Job:
    """A configuration that was checked, with absolute paths, and the files that were read for it."""

    config: TrainConfig
    dataset: dict[str, Any]  # dataset.json; for videos, what it would contain
    identity: dict[str, Any]  # settings that a resumed run must have in common with its beginning


def resolve(config: TrainConfig) -> Job:
    """Check everything that can be checked before a cluster starts. Raises ValueError with the flag and the remedy."""
    config = check_deepspeed(with_precision(with_absolute_paths(config)))
    data.check(config)
    description = data.describe(config)
    check_dataset(config, description)
    job = Job(config, description, identity(config, description))
    defaults = {name: TrainConfig.model_fields[name].default for name in LATER}
    defaults["drawn_up_to"] = job.identity["drawn_up_to"]
    columns = flow.columns_of(job.identity, "stream.")
    Output(config.output).check({**job.identity, **columns}, defaults={**defaults, **columns})
    flow.check_columns(config.output, columns)
    if config.init.startswith("lavie:") and not Path(config.init.removeprefix("lavie:")).is_file():
        raise ValueError(f"--init {config.init} names no file; give lavie:PATH with the path of lavie_base.pt")
    if config.lora_rank is not None:
        check_prediction_type(config)
    return job


def check_prediction_type(config: TrainConfig) -> None:
    """Check that a LoRA is trained for its base's prediction type, by which it will be sampled. Raises ValueError."""
    own = checkpoint.load_scheduler(data.directory(config)).config.prediction_type
    if config.prediction_type not in ("auto", own):
        raise ValueError(
            f"--prediction-type {config.prediction_type} does not go with --lora-rank, because {config.init} predicts "
            f"{own}; leave it out"
        )


def check_dataset(config: TrainConfig, description: dict[str, Any]) -> None:
    """Check that a dataset fits the model. description: dataset.json. Raises ValueError."""
    if description["score_only"]:
        raise ValueError(f"--dataset {config.dataset} holds scores and no latents; prepare it without --score-only")
    if config.balance_buckets and not description.get("bucket_weights"):
        raise ValueError(
            f"--balance-buckets: --dataset {config.dataset} has no bucket weights; run its prepare job again with "
            "--balance, which adds them (videos have none until they are prepared)"
        )
    source = data.directory(config)
    card = checkpoint.read_card(source)
    name = config.init if config.has_model else config.components
    expected = {"vae_fingerprint": models.fingerprint(source / checkpoint.vae_name(source))}
    if description["text_fingerprint"] is not None:
        expected["text_fingerprint"] = models.fingerprint(source / "text_encoder")
    # A model in the official layout does not state its definition of the score, so there is nothing to compare.
    score = card.motion.get("score") if config.has_model else SCORE_DEFINITION
    if score is not None:
        expected["score_definition"] = score
    for field, value in expected.items():
        if description[field] != value:
            raise ValueError(
                f"--dataset {config.dataset} was made with {field} {description[field]}, but {name} has {value}; "
                f"prepare it with --model {name}, or train from the model it was made with"
            )
    check_shapes(config, description, card)
    if "counts" in description:
        check_count(config, description)


def check_shapes(config: TrainConfig, description: dict[str, Any], card: checkpoint.ModelCard) -> None:
    """Check that the model takes the sizes and lengths of a dataset's clips; of a stream, that there is one shape.

    description: dataset.json. card: of the model. Raises ValueError.
    """
    if data.is_stream(config.dataset) and (description["height"] is None or len(config.stream.lengths) > 1):
        raise ValueError(
            f"--dataset {config.dataset} names videos, of which clips of one shape are made; give one size and one "
            "--stream.num-frames, or prepare a dataset of several with ray_jobs/prepare.py"
        )
    for frames, height, width in reader.shapes_of(description) if config.has_model else []:
        if card.sizes and (height, width) not in card.sizes:
            raise ValueError(
                f"--dataset {config.dataset} is {height} x {width}, but {config.init} takes {card.sizes}; "
                "prepare it at one of these"
            )
        if card.lengths and frames not in card.lengths:
            raise ValueError(
                f"--dataset {config.dataset} has clips of {frames} frames, but {config.init} takes "
                f"{card.lengths}; prepare it with one of these as --num-frames"
            )


def check_count(config: TrainConfig, description: dict[str, Any]) -> None:
    """Check that some shape has clips for a batch, with and without those held out. Raises ValueError."""
    clips = max((each["clips"] for each in description.get("shapes", [description["counts"]])), default=0)
    alike = " of one shape" if "shapes" in description else ""
    if clips < config.total_batch:
        raise ValueError(
            f"--dataset {config.dataset} has {clips} clips{alike}, fewer than --total-batch {config.total_batch}; "
            "prepare more (--clips-per-video) or lower it"
        )
    if config.validation_share:
        count = reader.count_clips(config.dataset, config.validation_share, config.total_batch)
        if count < config.total_batch:
            raise ValueError(
                f"--dataset {config.dataset} has {clips} clips{alike}, of which --validation-share "
                f"{config.validation_share} leaves {count} to train on, fewer than --total-batch "
                f"{config.total_batch}; prepare more videos, or lower one of the two"
            )


def run(job: Job) -> dict[str, Any]:
    """Train, or resume the training; returns the summary. Needs a running Ray. Raises StopTraining and Ray's errors."""
    config, dataset = job.config, job.dataset
    output, began = config.output, time.monotonic()
    with lease.hold(output) as held, tracking.start("train", output, config.tracking_uri, config.model_dump()) as log:
        log.tags({"dataset_fingerprint": dataset["fingerprint"], "init": config.init})
        log.came_from("prepare", "dataset_fingerprint", dataset["fingerprint"])
        if config.has_model:
            log.came_from("train", tracking.FINGERPRINT, models.fingerprint(data.directory(config)))
        storage.put_json(storage.join(output, "settings.json"), job.identity)
        result = read_result(config) or fit(job, log, held)
        held.confirm()
        storage.put_json(storage.join(output, "result.json"), {"steps": config.max_steps, **result})
        losses = read_losses(output)
        Output(output).show("loss.png", plots.curve(losses, smooth(losses), "step", "loss"), log)
        product = {
            config.product: storage.join(output, config.product),
            f"{config.product}_fingerprint": result[f"{config.product}_fingerprint"],
        }
        log.tags(product)
        registered = None
        if config.register_as is not None:
            tags = {**product, "dataset_fingerprint": dataset["fingerprint"]}
            registered = models.register(config.register_as, tags.pop(config.product), tags, log)
    return {
        "job": "train",
        "output": output,
        **product,
        "registered": registered,
        "steps": len(losses),
        "loss_first_20": round(mean(losses[:20]), 5),
        "loss_last_20": round(mean(losses[-20:]), 5),
        "validation_loss": result["validation_loss"],
        "bad_steps": result["bad_steps"],
        "dataset_fingerprint": dataset["fingerprint"],
        "run_id": log.run_id,
        "seconds": round(time.monotonic() - began, 2),
    }


def read_result(config: TrainConfig) -> dict[str, Any] | None:
    """Read what fit returned when the run was finished before; None when there are steps left to take."""
    result = storage.read_json(storage.join(config.output, "result.json"))
    last = {"model": checkpoint.CARD_NAME, "lora": lora.WEIGHTS_NAME}[config.product]  # written last by an export
    exported = storage.exists(storage.join(config.output, config.product, last))
    return result if exported and result is not None and result["steps"] == config.max_steps else None


def fit(job: Job, log: tracking.Log, held: lease.Lease) -> dict[str, Any]:
    """Run the workers to the last step; returns rank 0's summary.

    Raises StopTraining after too many bad steps, or when more than max_steps are taken already, and Ray Train's error
    after more than max_failures failures.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.train.trainer import StopTraining, train_loop

    config, output = job.config, job.config.output
    low, high = config.workers[0], data.most_workers(config)
    reporter = ray.remote(num_cpus=0)(Reporter).remote()
    source = data.start(config, output, job.dataset)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "config": config.model_dump(),
            "dataset": job.dataset,
            "model_fingerprint": job.identity["components"],
            "reporter": reporter,
            "source": source,
            "tracking": (log.uri, log.run_id),
            "token": held.record["token"],
        },
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            elastic_resize_monitor_interval_s=config.resize_every,
            use_gpu=config.gpu,
            resources_per_worker=None if config.gpu else {"CPU": data.divide_cpus(config)[0]},
        ),
        # Under the same name and path, Ray Train finds the last checkpoint and passes it to the workers.
        run_config=RunConfig(
            name="checkpoints",
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with show_lines(reporter):
        try:
            result = trainer.fit().return_value
        finally:
            if not isinstance(source, data.PreparedDataset):
                ray.kill(source)
    if "stopped" in result:
        raise StopTraining(result["stopped"])
    return result


@contextmanager
def show_lines(reporter: Any) -> Iterator[None]:
    """Print the lines of a Reporter on stderr, every second and once at the end."""
    import ray

    finished = threading.Event()

    def show() -> None:
        last = False
        while not last:
            last = finished.wait(1.0)
            for line in ray.get(reporter.take.remote()):
                to_stderr(line)

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join(timeout=5)
