"""Training on Ray Train with a DeepSpeed engine: what it takes, what it refuses, and the run as the driver sees it.

Knows configuration, resuming and the results. What a worker does is train_loop.py. Settings that change the run are
kept beside it, so that the same command goes on from the last checkpoint and another one is refused.
"""

import csv
import io
import threading
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from cinemo import checkpoint
from cinemo.motion import SCORE_DEFINITION
from pipelines import dataset, storage, tracking
from pipelines.progress import to_stderr

# What a preset changes of the defaults below; a flag or a line of YAML wins over both.
PRESETS: dict[str, dict[str, Any]] = {
    # Minutes on two cores: the built-in model's architecture.
    "tiny": {},
    # The paper's run (section 4.1): all parameters from LaVie's weights, batch 80. 320 x 512 is the dataset's size.
    "base": {
        "init": "lavie:lavie_base.pt",
        "components": "maxin-cn/Cinemo",
        "total_batch": 80,
        "micro_batch": 1,
        "learning_rate": 1e-4,
        "warmup_steps": 500,
        "checkpoint_every": 1000,
    },
}


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    """What the train job takes."""

    dataset: str = Field(description="folder or URI that ray_jobs/prepare.py wrote")
    output: str = Field(description="folder or URI of the run; the same command again goes on from its last checkpoint")
    preset: Literal["tiny", "base"] = Field("tiny", description="defaults for a small run, or for the paper's")
    init: str = Field("builtin:tiny", description="where the U-Net starts: a model, lavie:PATH, or none for random")
    components: str = Field("builtin:tiny", description="model that gives all else when init is none or lavie:PATH")
    zero_stage: int = Field(2, ge=0, le=3, description="what DeepSpeed ZeRO shards over the workers")
    num_workers: int = Field(2, ge=1, description="training processes")
    gpu: bool = Field(False, description="one GPU for each worker")
    max_steps: int = Field(100, ge=1, description="optimizer steps in all, those before a resume included")
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        "auto",
        description="what the U-Net learns to predict; auto: as init's model, and from nothing the noise (Eq. 3)",
    )
    total_batch: int = Field(8, ge=1, description="clips in a step, over all workers and accumulation rounds")
    micro_batch: int = Field(4, ge=1, description="clips that a worker takes at once")
    learning_rate: float = Field(2e-3, gt=0, description="Adam's, after the warm-up; 1e-4 from trained weights")
    warmup_steps: int = Field(5, ge=0, description="steps over which the learning rate rises to its value")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    prompt_drop: float = Field(0.5, ge=0, le=1, description="share of prompts replaced by the empty one (paper: 0.5)")
    seed: int = Field(0, ge=0, description="noise, timesteps, prompt drops and order come from (seed, step, clip)")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints; the last step always has one")
    max_failures: int = Field(2, ge=0, description="lost workers that the run gets over by itself")
    tracking_uri: str | None = Field(None, description="MLflow server or database; default: mlflow.db beside output")

    @model_validator(mode="before")
    @classmethod
    def _preset_gives_defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        chosen = {**PRESETS.get(given.get("preset", "tiny"), {}), **given}
        if chosen.get("init", "builtin:tiny") != "none":  # trained weights are nudged, not thrown about
            chosen.setdefault("learning_rate", 1e-4)
        return chosen

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainConfig":
        at_once = self.micro_batch * self.num_workers
        if self.total_batch % at_once:
            raise ValueError(
                f"--total-batch {self.total_batch} is not a multiple of --micro-batch {self.micro_batch} x "
                f"--num-workers {self.num_workers}; make it {at_once * max(1, round(self.total_batch / at_once))}"
            )
        return self

    @property
    def has_model(self) -> bool:
        """Whether the U-Net starts from a model directory, not from nothing or LaVie's weights."""
        return self.init != "none" and not self.init.startswith("lavie:")

    @property
    def predicts(self) -> str:
        """What the U-Net predicts: "epsilon" or "v_prediction"."""
        if self.prediction_type != "auto":
            return self.prediction_type
        return checkpoint.load_scheduler(self.source).config.prediction_type if self.has_model else "epsilon"

    @property
    def source(self) -> Path:
        """The model directory that gives everything but, perhaps, the U-Net's weights. Raises ValueError."""
        return checkpoint.resolve(self.init if self.has_model else self.components)


def settings(config: TrainConfig) -> dict[str, Any]:
    """Everything that a resumed run must share with its beginning, by the name of its flag."""
    free = {"output", "max_steps", "checkpoint_every", "max_failures", "tracking_uri"}
    chosen = config.model_dump(exclude=free)
    chosen["init"] = storage.absolute_model(config.init)
    chosen["dataset"] = dataset.read_description(config.dataset)["fingerprint"]
    chosen["components"] = checkpoint.fingerprint(config.source)
    return chosen


def check(config: TrainConfig) -> None:
    """Refuse what cannot work, before a cluster is touched: raises ValueError naming the flag and what it met."""
    found = dataset.read_description(config.dataset)
    check_dataset(config, found)
    before = storage.read_json(storage.join(config.output, "settings.json"))
    for name, value in settings(config).items():
        if before is not None and before.get(name) != value:
            raise ValueError(
                f"--{name.replace('_', '-')}: the run in {config.output} has {before.get(name)!r}, this command "
                f"{value!r}; give the old value, or another --output"
            )
    if config.init.startswith("lavie:") and not Path(config.init.removeprefix("lavie:")).is_file():
        raise ValueError(f"--init {config.init} names no file; give lavie:PATH with the path of lavie_base.pt")


def check_dataset(config: TrainConfig, found: dict[str, Any]) -> None:
    """Refuse a dataset that does not fit the model; `found` is its dataset.json. Raises ValueError."""
    source = config.source
    card = checkpoint.read_card(source)
    name = config.init if config.has_model else config.components
    same = {"vae_fingerprint": checkpoint.fingerprint(source / checkpoint.vae_name(source))}
    if found["text_fingerprint"] is not None:
        same["text_fingerprint"] = checkpoint.fingerprint(source / "text_encoder")
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
    if found["counts"]["clips"] < config.total_batch:
        raise ValueError(
            f"--dataset {config.dataset} has {found['counts']['clips']} clips, fewer than --total-batch "
            f"{config.total_batch}; prepare more (--clips-per-video) or lower it"
        )


class Mailbox:
    """The newest line of progress, left by a worker and fetched by the driver, wherever each of them runs."""

    def __init__(self) -> None:
        self.line: str | None = None

    def put(self, line: str) -> None:
        """Leave a line, in place of one that was not fetched."""
        self.line = line

    def take(self) -> str | None:
        """Fetch the line, once."""
        line, self.line = self.line, None
        return line


def run(config: TrainConfig) -> dict[str, Any]:
    """Train, or go on training; returns the summary. Needs a running Ray; raises ValueError as check does."""
    check(config)
    # Workers have working directories of their own.
    paths = {name: storage.absolute(getattr(config, name)) for name in ("dataset", "output")}
    paths |= {name: storage.absolute_model(getattr(config, name)) for name in ("init", "components")}
    config = config.model_copy(update=paths)
    output, began = config.output, time.monotonic()
    found = dataset.read_description(config.dataset)
    with tracking.start("train", output, config.tracking_uri, config.model_dump()) as log:
        log.tags({"dataset_fingerprint": found["fingerprint"], "init": config.init})
        storage.put_json(storage.join(output, "settings.json"), settings(config))
        result = fit(config, output, log)
        losses = read_losses(output)
        picture = tracking.curve(losses, smooth(losses), "step", "loss")
        storage.put(storage.join(output, "loss.png"), picture)
        log.picture("loss.png", picture)
        log.tags({"model_fingerprint": result["model_fingerprint"], "model": storage.join(output, "model")})
    return {
        "job": "train",
        "output": output,
        "model": storage.join(output, "model"),
        "steps": len(losses),
        "loss_first_20": round(sum(losses[:20]) / len(losses[:20]), 5),
        "loss_last_20": round(sum(losses[-20:]) / len(losses[-20:]), 5),
        "dataset_fingerprint": found["fingerprint"],
        "model_fingerprint": result["model_fingerprint"],
        "run_id": log.run_id,
        "seconds": round(time.monotonic() - began, 2),
    }


def fit(config: TrainConfig, output: str, log: tracking.Log) -> dict[str, Any]:
    """Run the workers to the last step; returns what rank 0 returned. Raises what a worker raised once too often."""
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.train_loop import loop

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            "config": config.model_dump(),
            "output": output,
            "mailbox": mailbox,
            "tracking": (log.uri, log.run_id),
        },
        torch_config=TorchConfig(backend="nccl" if config.gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=config.gpu),
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
        while not finished.wait(1.0):
            if (line := ray.get(mailbox.take.remote())) is not None:
                to_stderr(line)

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        return trainer.fit().return_value
    finally:
        finished.set()
        watcher.join(timeout=5)


def read_losses(output: str) -> list[float]:
    """The loss of every step so far, from losses.csv. Empty before the first checkpoint."""
    text = (storage.read(storage.join(output, "losses.csv")) or b"step,loss\n").decode()
    return [float(row["loss"]) for row in csv.DictReader(io.StringIO(text))]


def smooth(values: list[float], reach: int = 5) -> list[float]:
    """Mean of every value and its neighbours up to `reach` steps away."""
    windows = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(window) / len(window) for window in windows]
