"""What one training worker does: U-Net and DeepSpeed engine, steps, checkpoints, export.

Noise, timesteps, prompt drops and the order of clips derive from (seed, step, clip id), so that the losses do not
depend on ZeRO's stage, on the number of workers, or on a resume. Imported by workers only: the driver needs no
DeepSpeed.
"""

import functools
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed

import cinemo
from cinemo import checkpoint
from cinemo.motion import UNIFORM_MOTION, motion_id
from cinemo.pipeline import encode_prompts
from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from pipelines import dataset, storage, tracking
from pipelines.progress import Progress
from pipelines.train import TrainConfig, read_losses

TAG = "state"  # DeepSpeed's name for what it saves inside a checkpoint directory
Text = Callable[[str], torch.Tensor]


def loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Train to the last step, then export. Runs on every worker; returns rank 0's summary.

    settings: config (TrainConfig as a dict), output (absolute), mailbox (actor for progress), tracking (uri, run id).
    """
    config, output = TrainConfig(**settings["config"]), settings["output"]
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    device = ray.train.torch.get_device()
    source = config.source
    motion = checkpoint.read_card(source).motion if config.has_model else UNIFORM_MOTION
    schedule = checkpoint.load_scheduler(source)
    predicts = config.predicts
    embed = text_features(source, device)
    clips = dataset.ClipReader(config.dataset)
    engine = start_engine(config, load_unet(config, source), world)
    start = restore(engine)
    losses = read_losses(output)[:start]
    log = tracking.join(*settings["tracking"]) if rank == 0 else tracking.Log()
    progress = Progress("train", "steps", config.max_steps, began=start, show=settings["mailbox"].put.remote)
    unsent: list[tuple[int, dict[str, float]]] = []

    for step in range(start, config.max_steps):
        rate = learning_rate(config, step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        positions = dataset.batch_positions(len(clips), config.total_batch, config.seed, step)
        total = torch.zeros((), device=device)
        for mine in dataset.share(positions, rank, world, config.micro_batch):
            batch = [clips[position] for position in mine]
            inputs = draw_batch(config, step, batch, embed, motion, schedule.config.num_train_timesteps)
            latents, text, ids, timesteps, noise = (tensor.to(device) for tensor in inputs)
            loss = training_loss(engine, latents, text, ids, timesteps, noise, schedule.alphas_cumprod, predicts)
            engine.backward(loss)
            engine.step()
            total += loss.detach() * len(mine) / config.total_batch
        torch.distributed.all_reduce(total)
        losses.append(total.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {step + 1}; lower --learning-rate or --grad-clip")

        last = step + 1 == config.max_steps
        if rank == 0:
            speed = progress.rate() * config.total_batch
            progress.add(1, f"loss {losses[-1]:.4f}  {speed:.1f} clips/s")
            unsent.append((step + 1, {"loss": losses[-1], "learning_rate": rate, "clips_per_second": speed}))
            if len(unsent) >= 20 or last:
                log.series(unsent)
                unsent = []
        if last or (step + 1) % config.checkpoint_every == 0:
            if rank == 0:
                storage.put(storage.join(output, "losses.csv"), csv_lines(losses))
            save(engine, step + 1, losses[-1])

    weights = gather(engine.module, rank)
    fingerprint = export(config, source, weights, motion, log.run_id, output) if rank == 0 else None
    return {"model_fingerprint": fingerprint}


def load_unet(config: TrainConfig, source: Path) -> CinemoUNet:
    """The U-Net as init says, in training mode: a model's, LaVie's, or random from the seed."""
    torch.manual_seed(config.seed)  # the same random weights in every worker
    if config.init.startswith("lavie:"):
        unet = checkpoint.load_lavie(config.init.removeprefix("lavie:"))
    elif config.init == "none":
        unet = CinemoUNet.from_config(CinemoUNet.load_config(source / "unet"))
    else:
        unet = checkpoint.load_unet(source)
    return unet.train()


def start_engine(config: TrainConfig, unet: CinemoUNet, world: int) -> Any:
    """A DeepSpeed engine around the U-Net, with torch's Adam."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.gpu else "cpu")
    import deepspeed

    if not config.gpu:
        # Its shared-memory collectives would be compiled now, for a minute and only where there is a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=unet,
        optimizer=torch.optim.Adam(unet.parameters(), lr=config.learning_rate),
        config={
            "train_micro_batch_size_per_gpu": config.micro_batch,
            "gradient_accumulation_steps": config.total_batch // (config.micro_batch * world),
            "gradient_clipping": config.grad_clip,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,  # torch's Adam needs no compiler, and works at every stage
            "steps_per_print": 10**9,
        },
    )
    return engine


def text_features(source: Path, device: torch.device) -> Text:
    """A function from caption to text features (T, D), float32 on the CPU; repeated captions are encoded once."""
    tokenizer, encoder = checkpoint.load_text(source, device=str(device))
    return functools.lru_cache(maxsize=4096)(lambda caption: encode_prompts(tokenizer, encoder, [caption])[0].cpu())


def draw_batch(
    config: TrainConfig, step: int, batch: Sequence[dataset.Clip], embed: Text, motion: dict[str, str], timesteps: int
) -> tuple[torch.Tensor, ...]:
    """(latents, text, motion_bucket, timesteps, noise) of training_loss for some clips at a step, on the CPU."""
    latents, text, chosen, noises = [], [], [], []
    for clip in batch:
        digest = hashlib.sha256(f"{config.seed}\n{step}\n{clip.clip_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        chosen.append(torch.randint(0, timesteps, (), generator=generator))
        drops = torch.rand((), generator=generator).item() < config.prompt_drop
        if drops or clip.text_embeds is None:
            text.append(embed("" if drops else clip.caption))
        else:
            text.append(torch.from_numpy(clip.text_embeds))
        latents.append(torch.from_numpy(np.ascontiguousarray(clip.latents.swapaxes(0, 1))))
        channels, frames, height, width = latents[-1].shape
        noises.append(torch.randn((channels, frames - 1, height, width), generator=generator))
    ids = torch.tensor([motion_id(clip.bucket, motion) for clip in batch])
    return torch.stack(latents), torch.stack(text), ids, torch.stack(chosen), torch.stack(noises)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant: a function of the step alone, so that a resume needs nothing else."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def save(engine: Any, steps: int, loss: float) -> None:
    """Every rank's shard as one Ray Train checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag=TAG, client_state={"steps": steps})
        ray.train.report(
            {"steps": steps, "loss": loss},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step_{steps:07d}",
        )


def restore(engine: Any) -> int:
    """Go back to the last checkpoint, if there is one; returns the number of steps that are done."""
    last = ray.train.get_checkpoint()
    if last is None:
        return 0
    with last.as_directory() as folder:
        _, client = engine.load_checkpoint(folder, tag=TAG)
    return client["steps"]


def gather(unet: torch.nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """The whole state dict on rank 0, empty elsewhere; one tensor at a time, because under ZeRO 3 all are sharded."""
    import deepspeed

    whole = {}
    for name, tensor in unet.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            if rank == 0:
                whole[name] = tensor.detach().to("cpu", copy=True)
    return whole


def export(
    config: TrainConfig,
    source: Path,
    weights: dict[str, torch.Tensor],
    motion: dict[str, str],
    run_id: str | None,
    output: str,
) -> str:
    """OUTPUT/model: the trained U-Net with the parts of its source, and where it came from. Returns its fingerprint."""
    config_of = source / "unet" if not config.init.startswith("lavie:") else None
    unet = CinemoUNet.from_config(CinemoUNet.load_config(config_of)) if config_of else CinemoUNet()
    unet.load_state_dict(weights)
    made_from = dataset.read_description(config.dataset)
    card = checkpoint.ModelCard(
        motion=motion,
        sizes=[(made_from["height"], made_from["width"])],
        lengths=[made_from["num_frames"]],
        lineage={
            "dataset_fingerprint": made_from["fingerprint"],
            "init": config.init,
            "steps": config.max_steps,
            "run_id": run_id,
            "code_version": cinemo.__version__,
        },
    )
    if storage.is_local(output):
        model = checkpoint.export_model(source, unet, Path(output) / "model", card, config.predicts)
        return checkpoint.fingerprint(model)
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint.export_model(source, unet, Path(folder) / "model", card, config.predicts)
        storage.upload(model, storage.join(output, "model"))
        return checkpoint.fingerprint(model)


def csv_lines(losses: Sequence[float]) -> bytes:
    """losses.csv: step, loss."""
    return ("step,loss\n" + "".join(f"{step},{loss!r}\n" for step, loss in enumerate(losses, 1))).encode()
