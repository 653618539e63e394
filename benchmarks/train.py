"""The train job against a plain PyTorch loop of the same work, and prepared latents against encoding in the loop.

    python benchmarks/train.py [--steps 30]

One worker and one thread each, the built-in model, clips of 16 frames of 128 x 192, batches of 4. The job's start-up
and end, measured as its time for STEPS_AT_START steps, are subtracted and printed. The loop encodes with a KL
autoencoder like the official one, at a quarter of its width, because the built-in model's costs next to nothing. Exits
1 when the job is slower than 0.9 of the loop, prepared latents are less than twice as fast as encoding, or the job
waits for data more than a tenth of its time. Takes about four minutes on two cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from prepare import make_videos, start_job
from timing import ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUND_JOB, BOUND_PREPARED, BOUND_WAIT = 0.9, 2.0, 0.1
CLIPS, BATCH, STEPS_AT_START = 16, 4, 4


def job(dataset: Path, output: Path, steps: int) -> tuple[float, float]:
    """Seconds of the whole command with one worker, and the mean share of a step that waits for data."""
    flags = {"num-workers": 1, "zero-stage": 0, "total-batch": BATCH, "micro-batch": BATCH, "max-steps": steps}
    command = [sys.executable, str(ROOT / "ray_jobs" / "train.py"), f"--dataset={dataset}", f"--output={output}"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in flags.items())],
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"the job failed with {done.returncode}: {done.stderr}")
    return seconds, waiting(output, json.loads(done.stdout.strip().splitlines()[-1])["run_id"])


def waiting(output: Path, run_id: str) -> float:
    """Mean share of a step's time that was spent waiting for clips, as logged in MLflow."""
    from mlflow.tracking import MlflowClient

    history = MlflowClient(f"sqlite:///{output.parent / 'mlflow.db'}").get_metric_history(run_id, "data_wait_share")
    return sum(metric.value for metric in history) / len(history)


def plain_loop(dataset: Path, steps: int, encode: bool) -> float:
    """Seconds of the same steps in this process, without Ray or DeepSpeed; `encode`: from frames instead of latents."""
    from cinemo import checkpoint
    from cinemo.latents import encode_frames
    from cinemo.residual import training_loss
    from cinemo.video import sample_clip
    from pipelines.dataset.reader import ClipReader
    from pipelines.train import data
    from pipelines.train.batch import draw_batch, text_features
    from pipelines.train.config import TrainConfig
    from pipelines.train.engine import AdamWithAverage

    config = TrainConfig(dataset=str(dataset), output="unused", total_batch=BATCH, micro_batch=BATCH)
    source = data.directory(config)
    unet = data.load_unet(config)
    predicts, motion = data.prediction_type(config), checkpoint.read_card(source).motion
    schedule = checkpoint.load_scheduler(source, predicts)
    embed = text_features(source, torch.device("cpu"))
    clips = ClipReader(config.dataset, config.validation_share)
    optimizer = AdamWithAverage(unet.parameters(), config.learning_rate, config.ema_decay)
    vae = small_kl_autoencoder(unet.config.in_channels)
    frames = [sample_clip(path, 0, 3, 16, (128, 192)) for path in sorted(dataset.parent.glob("videos/*.mp4"))]
    began = time.perf_counter()
    for step in range(steps):
        batch = [clips[place] for place in clips.positions(BATCH, config.seed, step)]
        latents, *others = draw_batch(config, step, batch, embed, motion, 1000)
        if encode:
            latents = torch.cat([encode_frames(vae, frames[(step + k) % len(frames)][None]) for k in range(BATCH)])
        loss = training_loss(unet, latents, *others, schedule.alphas_cumprod, predicts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def small_kl_autoencoder(latent_channels: int) -> Any:
    """Stable Diffusion's encoder at a quarter of its width; random weights, which do not affect the time."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=latent_channels,
        norm_num_groups=8,
    ).eval()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args(arguments).steps
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        preparing = start_job(make_videos(place / "videos", CLIPS), place / "dataset")
        _, errors = preparing.communicate()
        if preparing.returncode:
            sys.exit(f"preparing failed with {preparing.returncode}: {errors}")
        plain_loop(place / "dataset", 1, encode=True)  # compiles and loads
        loop = [plain_loop(place / "dataset", steps, encode=False)]
        encoding = [plain_loop(place / "dataset", steps // 3, encode=True) * 3]
        start, _ = job(place / "dataset", place / "start", STEPS_AT_START)
        whole, wait = job(place / "dataset", place / "whole", STEPS_AT_START + steps)
        loop.append(plain_loop(place / "dataset", steps, encode=False))
        encoding.append(plain_loop(place / "dataset", steps // 3, encode=True) * 3)
    seconds = [whole - start] * len(loop)
    facts: dict[str, Any] = {"start_up_seconds": start, "bound": BOUND_JOB}
    with_job, prepared = ratio(loop, seconds), ratio(encoding, loop)
    passed = with_job.ratio >= BOUND_JOB and wait <= BOUND_WAIT
    return max(
        report("train job against a plain loop", with_job, passed, waiting_for_data=wait, **facts),
        report("prepared latents against encoding", prepared, prepared.ratio >= BOUND_PREPARED, bound=BOUND_PREPARED),
    )


if __name__ == "__main__":
    sys.exit(main())
