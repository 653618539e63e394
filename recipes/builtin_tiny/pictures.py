"""Make the animations of README.md and docs/model-card.md, docs/*.webp, and a sheet of all camera motions.

    python recipes/builtin_tiny/pictures.py --model builtin:tiny --docs docs --out out/tiny

With --out, the loss curves of the training too: docs/builtin-training.png.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.longer import loop
from cinemo.motion import motion_bucket, motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.sheet import contact_sheet
from cinemo.synthetic import plain_caption
from cinemo.synthetic.images import photo
from recipes.builtin_tiny.evaluate import MOVES, animate, load_photos

ANIMATED = (
    ("chelsea.png", "the camera pans left", 6, "pan.webp"),
    ("coffee.png", "the camera zooms in", 8, "zoom.webp"),
    ("rocket.jpg", "the camera pans up and zooms out", 5, "rocket.webp"),
)
WIDTH = 384  # pixels, of the animations in the documents
FPS = 8


def write_webp(path: Path, frames: np.ndarray) -> None:
    """Write an endless animation, forwards and backwards, WIDTH pixels wide."""
    size = (WIDTH, WIDTH * frames.shape[1] // frames.shape[2])
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in loop(frames)]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0, quality=72, method=4
    )


def draw_losses(table: np.ndarray, path: Path) -> None:
    """Draw the loss curves of train.csv."""
    figure, axes = plt.subplots(figsize=(7, 3.2), dpi=110)
    for name, label in (("only_noise", "from noise alone"), ("some_signal", "from noisy residuals")):
        smooth = np.convolve(np.nan_to_num(table[name], nan=np.nanmean(table[name])), np.ones(5) / 5, mode="same")
        axes.plot(table["samples"][2:-2], smooth[2:-2], label=label)
    axes.set_xlabel("clips seen")
    axes.set_ylabel("weighted squared error")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="builtin:tiny or a model directory")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder to write to")
    parser.add_argument("--out", type=Path, help="folder of the training, with train.csv")
    arguments = parser.parse_args()
    if arguments.out:
        table = np.genfromtxt(arguments.out / "train.csv", delimiter=",", names=True)
        draw_losses(table, arguments.docs / "builtin-training.png")
    pipe = CinemoPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    for name, prompt, bucket, file in ANIMATED:
        job: dict[str, Any] = {"image": photo(name), "prompt": prompt, "motion_bucket": bucket, "seed": 0}
        write_webp(arguments.docs / file, animate(pipe, [job])[0])
    photos = load_photos(None)
    jobs: list[dict[str, Any]] = [
        {"image": image, "prompt": plain_caption(*move), "motion_bucket": 8, "seed": 0}
        for move, image in zip(MOVES, [*photos.values()] * 3, strict=False)
    ]
    rows = [
        (f"{job['prompt']}: bucket 8 requested, {motion_bucket(motion_score(clip))} measured", clip)
        for job, clip in zip(jobs, animate(pipe, jobs), strict=True)
    ]
    contact_sheet(rows).save(arguments.docs / "builtin.webp", quality=80)


if __name__ == "__main__":
    main()
