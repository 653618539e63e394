"""What one training worker does: clips in, steps, progress, checkpoints, and the model at the end.

Nothing derives from a global random state (batch.py), so that the losses do not depend on ZeRO's stage, on the
number of workers, on a resume, or on how often the model is judged. Imported by workers only: the driver needs no
DeepSpeed.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed

from cinemo import checkpoint
from cinemo.memory import peak_rss
from cinemo.motion import UNIFORM_MOTION
from cinemo.residual import training_loss
from pipelines.core import storage, tracking
from pipelines.core.progress import Progress
from pipelines.dataset import reader
from pipelines.train import data, validation, weights
from pipelines.train.batch import Inputs, draw_batch, text_features
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import shares
from pipelines.train.engine import start_engine, take_step
from pipelines.train.export import export
from pipelines.train.losses import csv_lines, read_losses
from pipelines.train.samples import SHOWN, show_samples
from pipelines.train.state import restore_checkpoint, save_checkpoint


def loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train to the last step, then export. Runs on every worker; returns rank 0's summary.

    settings: config (TrainConfig as a dict), output (absolute), reporter (actor for progress), stream (actor that makes
    clips, or None), tracking (uri, run id).
    A run that has to stop for its bad steps returns the sentence as "stopped": nothing would change if it were tried
    again, as a run is whose worker raised.
    """
    config, output = TrainConfig(**settings["config"]), settings["output"]
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    source = weights.directory(config)
    motion = checkpoint.read_card(source).motion if config.has_model else UNIFORM_MOTION
    predicts = weights.prediction_type(config)
    schedule = checkpoint.load_scheduler(source, predicts)
    embed = text_features(source, device)
    clips = data.open_clips(config, settings["stream"])
    rounds, micro = shares(config.total_batch, config.micro_batch, world)
    engine, optimizer = start_engine(config, weights.load_unet(config), world)
    unet = in_precision(engine)
    state = restore_checkpoint(engine, optimizer, config, world)
    start, bad_steps = state.get("steps", 0), state.get("bad_steps", [])
    if rank == 0:
        clips.begin(start * config.total_batch, state.get("cursor"))
    torch.distributed.barrier()
    losses = read_losses(output)[:start]
    judged = [row for row in validation.read_rows(output) if row["step"] <= start]
    held_out = clips.held_out(config.validation_clips)
    say = settings["reporter"].log.remote if rank == 0 else lambda line: None
    if config.validation_share and not held_out:
        say(f"no clip fell into --validation-share {config.validation_share}: there is no validation loss")
    timesteps = schedule.config.num_train_timesteps
    draw = functools.partial(validation.draw, embed=embed, motion=motion, timesteps=timesteps)
    shown_at = (held_out or clips.positions(config.total_batch, config.seed, start))[:SHOWN] if rank == 0 else []
    shown = [clips[position] for position in shown_at]
    log = tracking.join(*settings["tracking"]) if rank == 0 else tracking.Log()
    progress = Progress("train", "steps", config.max_steps, began=start, show=settings["reporter"].report.remote)
    unsent: list[tuple[int, dict[str, float]]] = []

    def loss_of(inputs: Inputs) -> torch.Tensor:
        latents, text, ids, chosen, noise = (tensor.to(device) for tensor in inputs)
        alphas = schedule.alphas_cumprod
        return training_loss(unet, latents, text, ids, chosen, noise, alphas, predicts, "none")

    def show(folder: str, steps: int) -> None:
        problem = show_samples(config, folder, steps, shown, motion, device, output, log)
        if problem is not None:
            say(problem)

    def judge(step: int) -> None:
        engine.eval()
        means = validation.validate(loss_of, draw, clips, held_out, config.micro_batch, device)
        engine.train()
        judged.append({"step": step, **means})
        if rank == 0:
            validation.write_rows(output, judged)
            log.series([(step, means)])

    if held_out and not judged:
        judge(start)  # what the run began with, so that what it brings can be read
    for step in range(start, config.max_steps):
        began, waited = time.perf_counter(), 0.0
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        positions = clips.positions(config.total_batch, config.seed, step)
        total, unfit, norm = torch.zeros((), device=device), [], math.nan
        for number, mine in enumerate(reader.share(positions, rank, world, micro), 1):
            waits_since = time.perf_counter()
            # A worker without a clip of its own takes part all the same: its collectives are waited for.
            batch = [clips[position] for position in mine or positions[:1]]
            inputs = draw_batch(config, step, batch, embed, motion, timesteps)
            waited += time.perf_counter() - waits_since
            each = loss_of(inputs)[: len(mine)]
            part = each.sum() / config.total_batch
            engine.backward(part * world * rounds)  # DeepSpeed takes the mean over workers and rounds
            if number == rounds:
                norm = take_step(engine, optimizer)
            else:
                engine.step()
            total += part.detach()
            unfit += [clip.clip_id for clip, loss in zip(batch, each.tolist(), strict=False) if not math.isfinite(loss)]
        torch.distributed.all_reduce(total)
        losses.append(total.item())

        if not math.isfinite(losses[-1]) or (not math.isfinite(norm) and config.precision != "fp16"):
            # fp16 leaves out a step now and then to find its loss scale: only its losses have to be finite.
            bad_steps.append({"step": step + 1, "clips": gather_ids(unfit) or [clips[at].clip_id for at in positions]})
            if len(bad_steps) > config.max_bad_steps:
                return {"stopped": stopped(config, bad_steps)}
        last = step + 1 == config.max_steps
        if rank == 0:
            speed = progress.rate() * config.total_batch
            note = f"  {len(bad_steps)} bad steps left out" if bad_steps else ""
            progress.add(1, f"loss {losses[-1]:.4f}  {speed:.1f} clips/s{note}")
            values = {
                "loss": losses[-1],
                "learning_rate": rate,
                "grad_norm": norm,
                "clips_per_second": speed,
                "data_wait_share": waited / (time.perf_counter() - began),
                "memory_mib": memory_mib(device),
                "bad_steps": float(len(bad_steps)),
            }
            unsent.append((step + 1, {name: value for name, value in values.items() if math.isfinite(value)}))
            if len(unsent) >= 20 or last:
                log.series(unsent)
                unsent = []
        samples = config.sample_every > 0 and (step + 1) % config.sample_every == 0
        saves = last or samples or (step + 1) % config.checkpoint_every == 0
        if held_out and (last or (step + 1) % config.validate_every == 0 if config.validate_every else saves):
            judge(step + 1)
        if saves:
            if rank == 0:
                storage.put(storage.join(output, "losses.csv"), csv_lines(losses))
            cursor = clips.cursor((step + 1) * config.total_batch)
            done = {"steps": step + 1, "loss": losses[-1], "bad_steps": bad_steps, "cursor": cursor}
            save_checkpoint(engine, config, world, done)
            if samples and rank == 0 and not last:
                with ray.train.get_checkpoint().as_directory() as folder:
                    show(folder, step + 1)

    if rank > 0:
        return {}
    with ray.train.get_checkpoint().as_directory() as folder:
        fingerprint = export(config, folder, motion, log.run_id, output)
        show(folder, config.max_steps)
    validation_loss = judged[-1].get(validation.TOTAL) if judged else None
    return {"model_fingerprint": fingerprint, "validation_loss": validation_loss, "bad_steps": bad_steps}


def gather_ids(mine: list[str]) -> list[str]:
    """What all workers found, sorted; every worker has to call it."""
    found: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(found, mine)
    return sorted(clip_id for ids in found for clip_id in ids)


def stopped(config: TrainConfig, bad_steps: list[dict[str, Any]]) -> str:
    """The sentence that ends a run with too many bad steps."""
    last = bad_steps[-1]
    return (
        f"step {last['step']} has no finite loss or gradient, as {len(bad_steps)} steps now have, more than "
        f"--max-bad-steps {config.max_bad_steps}: look at the clips {', '.join(last['clips'])}, or lower "
        "--learning-rate; no such step changed the weights, and the last checkpoint is good"
    )


def memory_mib(device: torch.device) -> float:
    """The most memory that this worker has had: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_rss() / 2**20


def in_precision(engine: Any) -> Callable[..., Any]:
    """The engine, called with inputs of its weights' type: noising and loss stay float32."""
    dtype = next(engine.module.parameters()).dtype
    return lambda *inputs: engine(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant: a function of the step alone, so that a resume needs nothing else."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
