"""Train a LoRA of a motion that builtin:tiny does not know, by 20 clips in 100 steps, and judge its effect on photos.

    python benchmarks/lora.py [--output out/lora] [--steps 100]

Draws 20 clips of pictures that stretch sideways, and runs the jobs on two cores: prepare, then train --lora-rank 16.
Animates crops of photos that no clip shows, and judges the motion by its optical flow (cinemo/metrics/flow.py): without
the LoRA, with it, and again with it turned off, which must give the videos made without it, to the last bit. Prints a
table; exits 1 when fewer than 90 % of the photos stretch with the LoRA, or a bit differs. The same command goes on
where it stopped.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cinemo import CinemoPipeline, lora
from cinemo.metrics import flow
from cinemo.synthetic import plain_caption, write_clips
from cinemo.synthetic.images import canvas

ROOT = Path(__file__).resolve().parent.parent
CLIPS, PHOTOS, SIZE = 20, 8, (192, 320)
STRETCHES = ("the picture stretches sideways", "it is pulled wide", "everything grows wide")
KNOWN = [("pan", "left"), ("pan", "up"), ("zoom", "in"), ("rotate", "clockwise")]
BUCKETS = (4, 8)
NEEDED = 0.9


def job(name: str, *arguments: str) -> None:
    """Run a job of the checkout; its progress is on stderr."""
    subprocess.run([sys.executable, str(ROOT / "ray_jobs" / name), *arguments], check=True, stdout=sys.stderr)


def train(output: Path, steps: int) -> tuple[Path, float]:
    """Draw, prepare and train; returns (folder of the LoRA, seconds)."""
    began, clips, dataset, run = time.monotonic(), output / "clips", output / "dataset", output / "train"
    if not (clips / "captions.csv").exists():
        write_clips(clips, CLIPS, size=SIZE, kinds=("stretch",))
    size = ["--height", str(SIZE[0]), "--width", str(SIZE[1])]
    job("prepare.py", "--input", str(clips), "--output", str(dataset), *size, "--clips-per-video", "1",
        "--min-interval", "1")  # fmt: skip
    job("train.py", "--dataset", str(dataset), "--output", str(run), "--lora-rank", "16", "--max-steps", str(steps),
        "--num-workers", "2", "--total-batch", "4", "--micro-batch", "2", "--validation-share", "0")  # fmt: skip
    return run / "lora", time.monotonic() - began


def animate(pipe: CinemoPipeline, prompts: Sequence[str]) -> list[np.ndarray]:
    """Animate every photo by every prompt, at every bucket."""
    return [
        pipe(
            canvas(number, held_out=True), prompt, motion_bucket=bucket, seed=number, height=SIZE[0], width=SIZE[1],
            num_inference_steps=pipe.card.steps, guidance_scale=pipe.card.guidance,
        ).frames[0]
        for prompt in prompts for number in range(PHOTOS) for bucket in BUCKETS
    ]  # fmt: skip


def share(clips: Sequence[np.ndarray], moves: Sequence[tuple[str, str]]) -> float:
    """Share of the clips that move as `moves` say: (kind, direction) pairs, each for an equal part of the clips.

    clips: uint8 (N, H, W, 3) each, in the order of `moves`.
    """
    each = len(clips) // len(moves)
    judged = [flow.agrees(flow.measure(clip)[0], *moves[number // each]) for number, clip in enumerate(clips)]
    return float(np.mean(np.array(judged, bool)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("out/lora"))
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    folder, seconds = train(options.output, options.steps)

    pipe, adapter = CinemoPipeline.from_pretrained("builtin:tiny"), lora.read(folder)
    pipe.set_progress_bar_config(disable=True)
    known, stretch = [plain_caption(*move) for move in KNOWN], [("stretch", "wide")]
    before, before_known = animate(pipe, STRETCHES), animate(pipe, known)
    lora.attach(pipe.unet, adapter, "stretch")
    after, after_known = animate(pipe, STRETCHES), animate(pipe, known)
    lora.set_weights(pipe.unet, {})
    same = all(np.array_equal(old, new) for old, new in zip(before, animate(pipe, STRETCHES), strict=True))
    obeyed = share(after, stretch)
    rows = [
        ("photos that stretch at the words for it", share(before, stretch), obeyed),
        ("photos that pan, zoom or rotate at the words for it", share(before_known, KNOWN), share(after_known, KNOWN)),
    ]
    size = adapter.path.stat().st_size / 1e6
    print(f"{size:.1f} MB, from {CLIPS} clips in {options.steps} steps and {seconds:.0f} s")
    print("\n| | without the LoRA | with it |\n| --- | ---: | ---: |")
    for name, *shares in rows:
        print(f"| {name} | {shares[0]:.0%} | {shares[1]:.0%} |")
    print(
        f"\nwith the LoRA turned off, {len(before)} videos are {'' if same else 'NOT '}to the last bit those of before"
    )
    return 0 if obeyed >= NEEDED and same else 1


if __name__ == "__main__":
    sys.exit(main())
