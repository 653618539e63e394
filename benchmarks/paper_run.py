"""Cost of the paper's training run (section 4.1: 8 GPUs for a week, batches of 80): computed, not measured.

    python benchmarks/paper_run.py [--gpus 8] [--tflops 312] [--efficiency 0.35] [--days 7] [--clips 35000000] ...
    python benchmarks/paper_run.py --check     # exits 1 when docs/operations.md has other numbers

Operations are counted in the real U-Net without its contents, bytes of a clip and of a checkpoint from their formats,
memory is that of docs/training-memory.md (`train_memory.py --check`). What cannot be computed is an option with a
default that the table names: replace it by what `gpu.py` and your storage measure.
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cinemo.image import fit_pixels, read_image
from cinemo.latents import to_frames
from cinemo.residual import training_loss
from cinemo.synthetic.images import photo
from cinemo.unet import CinemoUNet
from pipelines.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE, MEMORY = ROOT / "docs" / "operations.md", ROOT / "docs" / "training-memory.md"
BEGIN, END = "<!-- table: written by paper_run.py -->", "<!-- end of table -->"
HEIGHT, WIDTH, FRAMES, CHANNELS, FACTOR = 320, 512, 16, 4, 8
TOKENS, TEXT_WIDTH = 77, 768
# Bytes of a weight in a checkpoint in bf16: the weight itself, and float32 master copy, Adam's moments and average.
CHECKPOINT_BYTES = 2 + 4 * 4
HEADROOM = 0.9  # of a GPU's memory; the rest is for what docs/training-memory.md does not count


def count_operations(checkpointing: bool) -> tuple[int, int]:
    """Count (floating-point operations to train on one clip, weights) of the full-size U-Net."""
    with torch.device("meta"):
        unet = CinemoUNet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        clip = torch.empty(1, CHANNELS, FRAMES, HEIGHT // FACTOR, WIDTH // FACTOR)
        ids, text = torch.zeros(1, dtype=torch.long), torch.empty(1, TOKENS, TEXT_WIDTH)
        with FlopCounterMode(display=False) as counted:
            training_loss(unet, clip, text, ids, ids, torch.empty_like(clip[:, :, 1:]), torch.empty(1000)).backward()
    return counted.get_total_flops(), sum(weight.numel() for weight in unet.parameters())


def clip_bytes() -> int:
    """Bytes of a clip in a dataset with text features: float16 tensors, which hardly compress, and the first frame."""
    latents = 2 * FRAMES * CHANNELS * (HEIGHT // FACTOR) * (WIDTH // FACTOR)
    frame = to_frames(fit_pixels(read_image(photo("coffee.png")), HEIGHT, WIDTH))[0]
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(frame)).save(buffer, format="WEBP", quality=90)  # as the prepare job does
    return latents + 2 * TOKENS * TEXT_WIDTH + len(buffer.getvalue())


def memory_row(section: str, first: Sequence[str]) -> list[float]:
    """Numbers of the row of docs/training-memory.md that begins with these cells, in a section."""
    text = MEMORY.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[: len(first)] == list(first):
            return [float(cell) for cell in cells[len(first) :]]
    raise ValueError(f"{MEMORY} has no row {first} in {section}; run benchmarks/train_memory.py")


def rows(options: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yield what is counted, the number, and where it comes from."""
    config = TrainConfig(dataset="none", output="none", preset="base", num_workers=options.gpus, gpu=True)
    operations, parameters = count_operations(checkpointing=False)
    batch, gpus, every = config.total_batch, options.gpus, config.checkpoint_every
    yield "operations to train on a clip", f"{operations / 1e12:.1f} TFLOP", "counted in forward and backward pass"
    repeated = f"{count_operations(checkpointing=True)[0] / 1e12:.1f} TFLOP"
    yield "the same with `--gradient-checkpointing`", repeated, "counted"

    step = batch * operations / (gpus * options.tflops * 1e12 * options.efficiency)
    steps, rate = int(options.days * 86_400 / step), f"{gpus} GPUs of {options.tflops:g} TFLOP/s (A100, bf16)"
    yield "a step", f"{step:.1f} s", f"{batch} clips on {rate}, of which {options.efficiency:.0%} is **assumed**"
    yield "steps", f"{steps:,}", f"{24 * options.days:g} h: the paper trains for a week, and gives no number of steps"
    yield "GPU hours", f"{24 * options.days * gpus:,.0f}", f"{gpus} GPUs"
    yield (
        "clips of each video",
        f"{steps * batch / options.clips:.2f}",
        f"WebVid-10M, Vimeo25M: {options.clips:,} videos",
    )

    stage, precision = str(config.zero_stage), f"`--precision {config.arithmetic}`"
    *_, peak, checkpointed = memory_row(precision, [stage, str(gpus)])
    activations = memory_row("Activations", ["plain"])[1]
    most = int((HEADROOM * options.gpu_memory * 1e9 / 2**30 - peak) / activations) + 1
    yield "memory of a GPU", f"{peak} GiB", f"{precision}, `--zero-stage {stage}`: `benchmarks/train_memory.py`"
    yield "the same with `--gradient-checkpointing`", f"{checkpointed} GiB", "the same"
    yield (
        "largest `--micro-batch`",
        str(most),
        f"{activations} GiB more a clip, {HEADROOM:.0%} of {options.gpu_memory:g} GB",
    )

    stored = clip_bytes()
    yield "a clip in the dataset", f"{stored / 1e3:.0f} kB", "float16 latents and text features, a photo as WebP"
    yield "the dataset", f"{stored * options.clips / 1e12:.1f} TB", f"a clip of each of {options.clips:,} videos"
    yield "clips a second from storage", f"{batch / step:.0f}", "all GPUs together"
    group = f"{2 * stored * batch / step / 1e6:.0f} MB/s"
    yield "bytes a second from storage", group, "a row group of 1 MiB, which is two clips, for each"

    saved, between = parameters * CHECKPOINT_BYTES, every * step
    restart = options.start + saved / (options.storage * 1e6)
    assumed = f"{options.start:g} s to start and {options.storage:g} MB/s to read are **assumed**"
    yield "a checkpoint", f"{saved / 1e9:.1f} GB", f"{CHECKPOINT_BYTES} bytes a weight; room for three is needed"
    yield "time between checkpoints", f"{between / 60:.0f} min", f"`--checkpoint-every {every}`"
    yield "a restart from one", f"{restart / 60:.1f} min", assumed
    lost = f"{(between / 2 + restart) / 60:.0f} min"
    yield "an interruption of a spot machine", lost, "half the time between checkpoints, on average, and a restart"
    yield "the same with `--checkpoint-every 100`", f"{(50 * step + restart) / 60:.0f} min", "the same"


def lines(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| what | number | from |"
    yield "| --- | ---: | --- |"
    for row in rows(options):
        yield f"| {' | '.join(row)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/operations.md")
    parser.add_argument("--gpus", type=int, choices=(1, 8, 64), default=8, help="GPUs, as in docs/training-memory.md")
    parser.add_argument("--tflops", type=float, default=312.0, help="TFLOP/s of a GPU in bf16, without sparsity")
    parser.add_argument("--efficiency", type=float, default=0.35, help="share of these that training reaches")
    parser.add_argument("--gpu-memory", type=float, default=80.0, help="GB")
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--clips", type=int, default=35_000_000)
    parser.add_argument("--storage", type=float, default=1000.0, help="MB/s at which a checkpoint is read")
    parser.add_argument("--start", type=float, default=300.0, help="seconds until another machine trains")
    options = parser.parse_args(arguments)
    text = "\n".join(lines(options))
    if not options.check:
        print(text)
        return 0
    same = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip() == text
    print(f"{PAGE.relative_to(ROOT)} {'has' if same else 'has not'} what this command prints")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
