"""Training on one worker: clips in, optimizer steps, validation, checkpoints, and the model at the end.

Nothing derives from a global random state (batch.py), so that the losses depend neither on the ZeRO stage, nor on the
number of workers, nor on a resume, nor on how often the model is validated. Only workers load DeepSpeed: the driver
needs none.
"""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed

from cinemo import checkpoint
from cinemo.motion import UNIFORM_MOTION
from cinemo.residual import training_loss
from cinemo.unet import pack
from pipelines.core import lease, tracking
from pipelines.core.precision import allow_tf32
from pipelines.core.progress import Progress
from pipelines.dataset.reader import Clip, Clips, micro_batches
from pipelines.train import data, validation
from pipelines.train.batch import Inputs, draw_batch, text_features
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import gradient_accumulation
from pipelines.train.engine import cast_inputs, start_engine, take_step
from pipelines.train.export import SHOWN, export, show_samples
from pipelines.train.losses import read_losses, read_rows, write_rows
from pipelines.train.preemption import Preemption
from pipelines.train.prefetch import Prefetch
from pipelines.train.results import StepResult, StepTensors, clips_to_look_at, gather, learning_rate, memory_mib, read
from pipelines.train.state import restore_checkpoint, save_checkpoint
from pipelines.train.uploads import Uploads, local_copy

LOG_EVERY = 20  # steps whose metrics go to MLflow in one request


class StopTraining(RuntimeError):  # noqa: N818
    """Ends a run that would end in the same way if it were tried again."""


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker; Ray Train calls this function on each. Returns rank 0's summary, {} on the others.

    settings: config (TrainConfig as a dict, with absolute paths), dataset (its description) and model_fingerprint
    (of source_model's directory), both of when the job began, reporter (actor that shows progress), source (of the
    clips: what data.start returned), tracking (MLflow's address and the id of the run), token (of the output's lease).
    """
    trainer = Trainer(settings)
    try:
        return trainer.run()
    except (StopTraining, lease.LeaseError) as error:
        # Ray Train retries whatever a worker raises (FailureConfig), so the driver gets the message and raises it.
        return {"stopped": str(error)}
    finally:
        trainer.batches.close()


class Trainer:
    """Trains the U-Net on this worker, together with the other workers of the run: all take the same steps."""

    # Set by `setup`. The first three hold the whole run, the steps before a resume included.
    losses: list[float]
    bad_steps: list[dict[str, Any]]  # steps without a finite loss and gradient: "step", and "clips" by id
    validation_rows: list[dict[str, float]]
    first_step: int
    held_out: Sequence[int]  # numbers of the clips to validate on
    sample_clips: list[Clip]  # clips whose first frames are animated; empty except on rank 0
    progress: Progress
    preemption: Preemption

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load the model and start its engine. settings: of train_loop."""
        self.config = config = TrainConfig(**settings["config"])
        self.output, self.reporter, self.token = config.output, settings["reporter"], settings["token"]
        self.dataset, self.model_fingerprint = settings["dataset"], settings["model_fingerprint"]
        context = ray.train.get_context()
        self.rank, self.local_rank = context.get_world_rank(), context.get_local_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            allow_tf32(config.arithmetic != "fp32")
        source = data.directory(config)
        self.motion: dict[str, str] = checkpoint.read_card(source).motion if config.has_model else UNIFORM_MOTION
        self.prediction_type: str = data.prediction_type(config)
        self.schedule: Any = checkpoint.load_scheduler(source, self.prediction_type)
        self.num_train_timesteps: int = self.schedule.config.num_train_timesteps
        self.alphas_cumprod: torch.Tensor = self.schedule.alphas_cumprod.to(self.device)
        self.text_features = text_features(source, self.device)
        self.clips: Clips = data.open_clips(config, settings["source"])
        self.gradient_accumulation_steps, self.micro_batch_size = gradient_accumulation(
            config.total_batch, config.micro_batch, self.world_size
        )
        self.engine, self.optimizer = start_engine(config, data.load_unet(config), self.world_size)
        self.unet = cast_inputs(self.engine)
        self.tracking = tracking.join(*settings["tracking"]) if self.rank == 0 else tracking.Log()
        # Steps whose numbers are still on the device. Reading them costs nothing on a CPU, so none wait there.
        self.unread: list[StepTensors] = []
        self.read_every = config.log_every if self.device.type == "cuda" else 1
        self.pending_metrics: list[tuple[int, dict[str, float]]] = []
        ahead = config.prefetch * self.gradient_accumulation_steps if self.clips.can_be_read_ahead else 0
        self.batches = Prefetch(self.plan(), self.clips.__getitem__, self.draw, ahead)  # of this worker
        self.uploads = Uploads(self.output)

    def setup(self) -> None:
        """Load the last checkpoint, go to the clip that comes next, and choose the clips to validate on.

        Raises StopTraining when the checkpoint is of a later step than the last one to take, and as `check_model` does.
        """
        config = self.config
        self.check_model()
        state = restore_checkpoint(self.engine, self.optimizer, config, self.world_size)
        self.first_step, self.bad_steps = state.get("steps", 0), state.get("bad_steps", [])
        if self.first_step > config.max_steps:
            raise StopTraining(
                f"--max-steps {config.max_steps}: this run has taken {self.first_step} steps, and earlier weights are "
                "not kept; give at least as many, or another --output"
            )
        if self.rank == 0:
            self.clips.begin(self.first_step * config.total_batch, state.get("cursor"))
        torch.distributed.barrier()
        self.preemption = Preemption(self.device, self.first_step)
        self.losses = read_losses(self.output)[: self.first_step]
        validated = read_rows(self.output, validation.TABLE)
        self.validation_rows = [row for row in validated if row["step"] <= self.first_step]
        self.held_out = self.clips.held_out(config.validation_clips)
        if config.validation_share and not self.held_out:
            self.log(f"no clip fell into --validation-share {config.validation_share}: there is no validation loss")
        self.sample_clips = []
        if self.rank == 0:
            shown = self.held_out or self.clips.positions(config.total_batch, config.seed, self.first_step)
            self.sample_clips = [self.clips[number] for number in shown[:SHOWN]]
        show = self.reporter.report.remote
        self.progress = Progress("train", "steps", config.max_steps, began=self.first_step, show=show)

    def run(self) -> dict[str, Any]:
        """Train to the last step and export the model. Returns rank 0's summary, {} on the others.

        Raises LeaseError, and StopTraining after more than max_bad_steps steps without finite loss and gradient.
        """
        config = self.config
        self.setup()
        if self.held_out and not self.validation_rows:
            self.validate(self.first_step)  # the loss before training, for comparison
        for step in range(self.first_step, config.max_steps):
            self.unread.append(self.step(step))
            done = step + 1
            last = done == config.max_steps
            samples = config.sample_every > 0 and done % config.sample_every == 0
            is_due = last or samples or done % config.checkpoint_every == 0
            validates = last or done % config.validate_every == 0 if config.validate_every else is_due
            if validates or len(self.unread) >= self.read_every:
                self.read_steps()
            if self.held_out and validates:
                self.validate(done)
            if is_due or self.preemption.is_new(done):
                self.save(done)
            if samples and self.rank == 0 and not last:
                with local_copy(self.uploads.last(), self.output) as folder:
                    self.show_samples(folder, done)
        self.check_model()  # again: its files are copied, and its fingerprint goes into a card
        return self.finish() if self.rank == 0 else {}

    def check_model(self) -> None:
        """Check each node's model against that of when the job began; every worker calls it. Raises StopTraining."""
        changed = data.changed_model(self.config, self.model_fingerprint) if self.local_rank == 0 else None
        if found := gather([changed] if changed else []):
            raise StopTraining(found[0])

    def step(self, step: int) -> StepTensors:
        """Take one optimizer step with this worker's share of a batch; steps count from 0."""
        config, began, data_wait = self.config, time.perf_counter(), 0.0
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        positions = self.clips.positions(config.total_batch, config.seed, step)
        loss = grad_norm = torch.zeros((), device=self.device)
        own_losses: list[tuple[list[str], torch.Tensor]] = []
        for number, micro_batch in enumerate(self.shares(positions), 1):
            waiting_since = time.perf_counter()
            batch, inputs = next(self.batches)
            data_wait += time.perf_counter() - waiting_since
            clip_losses = self.compute_losses(inputs, config.min_snr_gamma)[: len(micro_batch)]
            partial_loss = clip_losses.sum() / config.total_batch
            # DeepSpeed divides by the workers and by the accumulation steps; the loss is divided already.
            self.engine.backward(partial_loss * self.world_size * self.gradient_accumulation_steps)
            if number == self.gradient_accumulation_steps:
                grad_norm = take_step(self.engine, self.optimizer)
            else:
                self.engine.step()
            loss = loss + partial_loss.detach()
            own_losses.append(([clip.clip_id for clip in batch[: len(micro_batch)]], clip_losses.detach()))
        torch.distributed.all_reduce(loss)
        waited = data_wait / (time.perf_counter() - began)
        return StepTensors(step + 1, loss, grad_norm, rate, waited, own_losses)

    def read_steps(self) -> None:
        """Read the numbers of the last steps, and log them; every worker calls it. Raises StopTraining."""
        for tensors, result in read(self.unread):
            self.losses.append(result.loss)
            # fp16 skips a step now and then to find its loss scale: there, only the loss has to be finite.
            has_norm = math.isfinite(result.grad_norm) or self.config.precision == "fp16"
            if not (math.isfinite(result.loss) and has_norm):
                self.add_bad_step(tensors.step, clips_to_look_at(tensors))
            if self.rank == 0:
                self.log_step(tensors.step, result)
        self.unread = []

    def shares(self, positions: Sequence[int]) -> list[list[int]]:
        """Divide the positions of a step's batch; returns those of this worker, for each accumulation step."""
        return micro_batches(positions, self.rank, self.world_size, self.micro_batch_size)

    def plan(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Step and positions of each micro-batch that this worker takes, in order."""
        for step in range(self.first_step, self.config.max_steps):
            positions = self.clips.positions(self.config.total_batch, self.config.seed, step)
            for micro_batch in self.shares(positions):
                # A worker without a clip of its own computes one all the same: the others wait for its collectives.
                yield step, micro_batch or positions[:1]

    def draw(self, step: int, batch: Sequence[Clip]) -> Inputs:
        """Draw the inputs of clips at a step; in pinned memory, if a GPU is to use them."""
        inputs = draw_batch(self.config, step, batch, self.text_features, self.motion, self.num_train_timesteps)
        if self.device.type != "cuda":
            return inputs
        with torch.cuda.device(self.device):  # a new thread uses GPU 0 by default, which may be another worker's
            return tuple(tensor.pin_memory() for tensor in inputs)

    def compute_losses(self, inputs: Inputs, min_snr_gamma: float = 0.0) -> torch.Tensor:
        """Loss of each clip (B,), from the inputs that batch.py makes of clips; weighted with a min_snr_gamma."""
        latents, text, motion_ids, timesteps, noise = (tensor.to(self.device, non_blocking=True) for tensor in inputs)
        return training_loss(
            self.unet, latents, text, motion_ids, timesteps, noise, self.alphas_cumprod, self.prediction_type, "none",
            min_snr_gamma=min_snr_gamma,
        )  # fmt: skip

    def add_bad_step(self, step: int, clips: list[str]) -> None:
        """Record a step that changed nothing, with the ids of its clips. Raises StopTraining."""
        self.bad_steps.append({"step": step, "clips": clips})
        if len(self.bad_steps) > self.config.max_bad_steps:
            raise StopTraining(
                f"step {step} has no finite loss or gradient, as {len(self.bad_steps)} steps now have, more than "
                f"--max-bad-steps {self.config.max_bad_steps}: look at the clips {', '.join(clips)}, or lower "
                "--learning-rate; no such step changed the weights, and the last checkpoint is good"
            )

    def validate(self, steps: int) -> None:
        """Compute the validation losses after so many steps; every worker calls it."""
        batch = self.config.micro_batch
        self.engine.eval()
        pack.forget(self.engine.module)  # DeepSpeed writes weights through `.data`, unseen by the cache
        draw = functools.partial(
            validation.draw, embed=self.text_features, motion=self.motion,
            num_train_timesteps=self.num_train_timesteps, trigger_words=self.config.trigger_words,
        )  # fmt: skip
        means = validation.validate(self.compute_losses, draw, self.clips, self.held_out, batch, self.device)
        self.engine.train()
        self.validation_rows.append({"step": steps, **means})
        if self.rank == 0:
            write_rows(self.output, validation.TABLE, validation.COLUMNS, self.validation_rows)
            self.tracking.series([(steps, means)])

    def log(self, line: str) -> None:
        """Show a line to the person who watches the job, once for all workers."""
        if self.rank == 0:
            self.reporter.log.remote(line)

    def log_step(self, steps: int, result: StepResult) -> None:
        """Show the progress after so many steps, and send metrics to MLflow, LOG_EVERY steps at a time."""
        clips_per_second = self.progress.rate() * self.config.total_batch
        note = f"  {len(self.bad_steps)} bad steps left out" if self.bad_steps else ""
        self.progress.add(1, f"loss {result.loss:.4f}  {clips_per_second:.1f} clips/s{note}")
        values = {
            **result._asdict(),
            "clips_per_second": clips_per_second,
            "memory_mib": memory_mib(self.device),
            "bad_steps": float(len(self.bad_steps)),
        }
        self.pending_metrics.append((steps, {name: value for name, value in values.items() if math.isfinite(value)}))
        if len(self.pending_metrics) >= LOG_EVERY or steps == self.config.max_steps:
            self.tracking.series(self.pending_metrics)
            self.pending_metrics = []

    def save(self, steps: int) -> None:
        """Write a checkpoint, from which the run can be resumed, and losses.csv before it; every worker calls it.

        Raises StopTraining.
        """
        self.read_steps()
        began, losses = time.perf_counter(), list(self.losses)

        def write_losses() -> None:
            rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
            write_rows(self.output, "losses.csv", ["loss"], rows)

        progress = {
            "steps": steps,
            "loss": self.losses[-1],
            "bad_steps": self.bad_steps,
            "cursor": self.clips.cursor(steps * self.config.total_batch),
        }
        before = write_losses if self.rank == 0 else None
        save_checkpoint(self.engine, self.config, self.world_size, progress, self.uploads, before)
        self.pending_metrics.append((steps, {"checkpoint_seconds": time.perf_counter() - began}))

    def show_samples(self, folder: str | Path, steps: int) -> None:
        """Animate the sample clips with the weights of the checkpoint in `folder`."""
        problem = show_samples(
            self.config, folder, steps, self.sample_clips, self.motion, self.device, self.output, self.tracking
        )
        if problem is not None:
            self.log(problem)

    def finish(self) -> dict[str, Any]:
        """Export the model or the LoRA of the last checkpoint; returns the summary. Raises LeaseError."""
        lease.confirm(self.output, self.token)  # else it would replace the other job's
        with local_copy(self.uploads.last(), self.output) as folder:
            fingerprint = export(self.config, self.dataset, folder, self.motion, self.tracking.run_id)
            self.show_samples(folder, self.config.max_steps)
        return {
            f"{self.config.product}_fingerprint": fingerprint,
            "validation_loss": self.validation_rows[-1].get(validation.TOTAL) if self.validation_rows else None,
            "bad_steps": self.bad_steps,
        }
