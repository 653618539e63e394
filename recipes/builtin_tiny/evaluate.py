"""The numbers of docs/model-card.md: how well a built-in model animates held-out photos, beside what is wanted.

    python recipes/builtin_tiny/evaluate.py --model builtin:tiny

Measures pixels of finished animations (cinemo.metrics), and a cold process. Knows nothing of training or of the U-Net.
Takes about ten minutes on two cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import shift
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from skimage.registration import phase_cross_correlation

from cinemo.image import fit_pixels
from cinemo.metrics import flow
from cinemo.metrics.frames import abruptness, mean_colour_drift
from cinemo.metrics.statistics import motion_fidelity
from cinemo.motion import motion_bucket, motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic import plain_caption
from cinemo.synthetic.images import HELD_OUT_PHOTOS, photo

MOVES = (("pan", "left"), ("pan", "right"), ("pan", "up"), ("pan", "down"), ("zoom", "in"), ("zoom", "out"))
BUCKETS = (0, 4, 8, 12, 16, 19)
NUM_FRAMES = 16
SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.4}  # what suits so small a model


def fitted_photo(name: str, size: tuple[int, int] = (128, 192)) -> np.ndarray:
    """The middle of a bundled photo at the model's size: uint8 (H, W, 3)."""
    image = Image.fromarray(photo(name))
    scale = min(image.width / size[1], image.height / size[0])
    width, height = size[1] * scale, size[0] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize(size[::-1], Image.Resampling.LANCZOS, box=box))


def agrees(frames: np.ndarray, kind: str, direction: str) -> bool:
    """Whether the optical flow of uint8 (N, H, W, 3) goes the way of a pan or zoom (cinemo.metrics.flow)."""
    motion, _ = flow.measure(frames)
    return bool(flow.agrees(motion, kind, direction))


def animate_photos(pipe: Any, jobs: Sequence[dict[str, Any]], batch: int = 6, **settings: Any) -> list[np.ndarray]:
    """Frames of many animations; a job holds image, prompt, motion_bucket and seed."""
    clips: list[np.ndarray] = []
    for start in range(0, len(jobs), batch):
        group = jobs[start : start + batch]
        columns = {key: [job[key] for job in group] for key in group[0]}
        clips.extend(pipe(**columns, **settings).frames)
    return clips


class Number(NamedTuple):
    """A line of the table."""

    what: str
    measured: str
    wanted: str
    reached: bool


def direction(pipe: Any, per_move: int, bucket: int = 12) -> Iterable[Number]:
    """Whether optical flow goes the way of the prompt, and what the last frame keeps of the photo under pans."""
    moves = [move for move in MOVES for _ in range(per_move)]
    jobs = [
        {
            "image": fitted_photo(HELD_OUT_PHOTOS[number % len(HELD_OUT_PHOTOS)]),
            "prompt": plain_caption(*move),
            "motion_bucket": bucket,
            "seed": number % per_move,
        }
        for number, move in enumerate(moves)
    ]
    clips = animate_photos(pipe, jobs, **SETTINGS)
    hits = dict.fromkeys(MOVES, 0)
    for move, clip in zip(moves, clips, strict=True):
        hits[move] += agrees(clip, *move)
    share = sum(hits.values()) / len(moves)
    parts = ", ".join(f"{kind} {way} {hits[kind, way]}" for kind, way in MOVES)
    measured = f"{share:.0%} of {len(moves)} ({parts}; of {per_move} each)"
    yield Number("motion goes the way that the prompt says", measured, "85 % of 120", share >= 0.85)
    kept = [
        np.median([psnr(*overlap(clip[0], clip[-1])) for move, clip in zip(moves, clips, strict=True) if move == one])
        for one in MOVES
        if one[0] == "pan"
    ]
    measured = f"{min(kept):.1f} to {max(kept):.1f} dB"
    yield Number("last frame of a pan, moved back, against the photo (median)", measured, "20 dB", min(kept) >= 20)


def overlap(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What both pictures show, moved by the whole pixels that fit best (phase correlation): twice uint8 (h, w, 3)."""
    moved, _, _ = phase_cross_correlation(rgb2gray(first), rgb2gray(last), normalization=None)
    down, right = (int(step) for step in moved)  # by which the last must be moved
    height, width = first.shape[:2]
    rows, columns = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    back = slice(rows.start - down, rows.stop - down), slice(columns.start - right, columns.stop - right)
    return first[rows, columns], last[back]


def motion_control(pipe: Any, prompt: str = "the camera pans left") -> Iterable[Number]:
    """Requested against measured buckets, and how still bucket 0 is."""
    jobs: list[dict[str, Any]] = [
        {"image": fitted_photo(name), "prompt": prompt, "motion_bucket": bucket, "seed": 0}
        for bucket in BUCKETS
        for name in HELD_OUT_PHOTOS
    ]
    clips = animate_photos(pipe, jobs, **SETTINGS)
    found = motion_fidelity(
        [job["motion_bucket"] for job in jobs], [motion_bucket(motion_score(clip)) for clip in clips]
    )
    means = ", ".join(f"{found.by_bucket[bucket][0]:.1f}" for bucket in BUCKETS)
    what = f"Spearman of requested and measured bucket, {len(clips)} animations"
    yield Number(what, f"{found.spearman:.3f}", "0.9", found.spearman >= 0.9)
    yield Number(f"measured bucket when {', '.join(map(str, BUCKETS))} is asked for", means, "the same", False)
    still = clips[: len(HELD_OUT_PHOTOS)]
    likeness = float(np.mean([neighbour_ssim(clip) for clip in still]))
    yield Number("mean SSIM of neighbouring frames at bucket 0", f"{likeness:.3f}", "0.97", likeness >= 0.97)


def first_frame(pipe: Any) -> Iterable[Number]:
    """Whole photos, as people have them: the first frame against what the pipeline made of the photo."""
    jobs: list[dict[str, Any]] = [
        {"image": photo(name), "prompt": "", "motion_bucket": 0, "seed": 0} for name in HELD_OUT_PHOTOS
    ]
    kept = []
    for job, clip in zip(jobs, animate_photos(pipe, jobs, **SETTINGS), strict=True):
        given = fit_pixels(job["image"], *clip.shape[1:3])[0].permute(1, 2, 0).numpy()
        kept.append(psnr(clip[0], to_levels(given)))
    names = ", ".join(Path(name).stem for name in HELD_OUT_PHOTOS)
    measured = ", ".join(f"{value:.1f}" for value in kept)
    yield Number(f"PSNR of the first frame: {names}", f"{measured} dB", "27 dB", min(kept) >= 27)


def true_camera() -> Iterable[Number]:
    """The Spearman of a camera without a fault: the photos themselves, moved as fast as comes nearest to each bucket.

    Buckets are of SSIM, and what that falls to is as much the photo's doing as the motion's: half of rocket is sky.
    """
    speeds = np.concatenate([np.arange(0, 7, 0.25), np.arange(7, 29)])  # pixels a frame; the training's go up to 7
    found = np.array(
        [[motion_bucket(motion_score(slide(name, speed))) for speed in speeds] for name in HELD_OUT_PHOTOS]
    )

    def spearman(limit: float) -> float:
        nearest = [int(row[np.abs(row - bucket).argmin()]) for bucket in BUCKETS for row in found[:, speeds <= limit]]
        return motion_fidelity([bucket for bucket in BUCKETS for _ in HELD_OUT_PHOTOS], nearest).spearman

    what = "Spearman of the photos themselves, moved by at most 7 (14; 28) pixels a frame"
    yield Number(what, f"{spearman(7):.3f} ({spearman(14):.3f}; {spearman(28):.3f})", "0.9", spearman(7) >= 0.9)


def slide(name: str, speed: float, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """A photo, mirrored beyond its borders, under a camera that moves by `speed` pixels a frame: (N, H, W, 3)."""
    still = fitted_photo(name)
    return np.stack([shift(still, (0, -speed * n, 0), order=1, mode="mirror") for n in range(num_frames)])


def to_levels(pixels: np.ndarray) -> np.ndarray:
    """[-1, 1] -> uint8."""
    return ((pixels / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)


def neighbour_ssim(frames: np.ndarray) -> float:
    """Mean SSIM of each frame with the next (scikit-image's, over RGB)."""
    return float(np.mean([structural_similarity(a, b, channel_axis=2) for a, b in pairwise(frames)]))


def initial_noise(pipe: Any, count: int) -> Iterable[Number]:
    """DCTInit against none and against its FFT variant, on the same photos, prompts and noise (Fig. 3 and 5)."""
    jobs = [
        {
            "image": fitted_photo(HELD_OUT_PHOTOS[number % len(HELD_OUT_PHOTOS)]),
            "prompt": plain_caption(*MOVES[number // len(HELD_OUT_PHOTOS) % len(MOVES)]),
            "motion_bucket": 12,
            "seed": number,
        }
        for number in range(count)
    ]
    variants: dict[str, dict[str, Any]] = {"dct": {}, "fft": {"dct_transform": "fft"}, "none": {"dct_init": False}}
    jumps, drifts = {}, {}
    for name, more in variants.items():
        clips = animate_photos(pipe, jobs, **SETTINGS, **more)
        jumps[name] = float(np.median([abruptness(clip) for clip in clips]))
        drifts[name] = float(np.median([mean_colour_drift(clip).max() for clip in clips]))
    what = f"abruptness with DCTInit (without), median of {count}"
    yield Number(what, f"{jumps['dct']:.3f} ({jumps['none']:.3f})", "lower", jumps["dct"] < jumps["none"])
    what = f"colour drift with DCT (with FFT; with neither), CIE Lab, median of {count}"
    measured = f"{drifts['dct']:.3f} ({drifts['fft']:.3f}; {drifts['none']:.3f})"
    yield Number(what, measured, "lower than FFT", drifts["dct"] < drifts["fft"])


COLD = """
import sys
from cinemo.cli import app
app(sys.argv[1:], standalone_mode=False)
from cinemo.memory import peak_rss
print(peak_rss())
"""


def cold_process(model: str) -> Iterable[Number]:
    """Seconds and memory of `cinemo animate` for one photo, from the start of Python to the written file."""
    with tempfile.TemporaryDirectory() as folder:
        image, video = Path(folder) / "photo.png", Path(folder) / "video.mp4"
        Image.fromarray(photo("coffee.png")).save(image)
        flags = ["animate", str(image), "--prompt", "the camera pans left", "--motion-bucket", "12", "--model", model]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", COLD, *flags, "--output", str(video)], check=True, capture_output=True, text=True
        )
        seconds, size = time.perf_counter() - began, int(done.stdout.split()[-1]) / 1e9
    yield Number("one animation, from a cold process", f"{seconds:.1f} s", "15 s", seconds <= 15)
    yield Number("its memory", f"{size:.2f} GB", "1.5 GB", size <= 1.5)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="builtin:tiny or a model directory")
    parser.add_argument("--per-move", type=int, default=20, metavar="N", help="animations of each of the six moves")
    parser.add_argument("--noises", type=int, default=60, metavar="N", help="animations of each kind of initial noise")
    arguments = parser.parse_args()
    pipe = CinemoPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    print("| | measured | wanted | |\n| --- | --- | --- | --- |")
    parts = (
        direction(pipe, arguments.per_move),
        motion_control(pipe),
        true_camera(),
        first_frame(pipe),
        initial_noise(pipe, arguments.noises),
        cold_process(arguments.model),
    )
    for numbers in parts:
        for number in numbers:
            reached = "yes" if number.reached else "no"
            print(f"| {number.what} | {number.measured} | {number.wanted} | {reached} |", flush=True)


if __name__ == "__main__":
    main()
