"""How well a built-in model animates held-out photos: direction, amount and the image kept.

    python recipes/builtin_tiny/evaluate.py --model builtin:tiny --per-move 3

Measures pixels of finished animations (cinemo.metrics). Knows nothing of training or of the U-Net.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cinemo.latents import decode_latents, encode_frames
from cinemo.metrics import flow
from cinemo.metrics.statistics import motion_fidelity
from cinemo.motion import motion_bucket, motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic import plain_caption
from cinemo.synthetic.images import HELD_OUT_PHOTOS, photo

MOVES = (("pan", "left"), ("pan", "right"), ("pan", "up"), ("pan", "down"), ("zoom", "in"), ("zoom", "out"))
BUCKETS = (0, 4, 8, 12, 16, 19)
SETTINGS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0}  # what suits so small a model


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


def animate_photos(pipe: Any, jobs: Sequence[dict[str, Any]], batch: int, **settings: Any) -> list[np.ndarray]:
    """Frames of many animations; a job holds image, prompt, motion_bucket and seed."""
    clips: list[np.ndarray] = []
    for start in range(0, len(jobs), batch):
        group = jobs[start : start + batch]
        columns = {key: [job[key] for job in group] for key in group[0]}
        clips.extend(pipe(**columns, **settings).frames)
    return clips


def direction_score(
    pipe: Any,
    per_move: int = 3,
    moves: Sequence[tuple[str, str]] = MOVES,
    bucket: int = 12,
    batch: int = 6,
    **settings: Any,
) -> dict[str, float]:
    """Share of animations whose motion agrees with the prompt, by move and "all"; chance is about a half."""
    jobs, truths = [], []
    for kind, direction in moves:
        for number in range(per_move):
            image = fitted_photo(HELD_OUT_PHOTOS[number % len(HELD_OUT_PHOTOS)])
            prompt = plain_caption(kind, direction)
            jobs.append({"image": image, "prompt": prompt, "motion_bucket": bucket, "seed": number})
            truths.append((kind, direction))
    hits: dict[str, list[bool]] = {}
    for clip, (kind, direction) in zip(animate_photos(pipe, jobs, batch, **settings), truths, strict=True):
        hits.setdefault(f"{kind} {direction}", []).append(agrees(clip, kind, direction))
    scores = {move: float(np.mean(found)) for move, found in hits.items()}
    return scores | {"all": float(np.mean([hit for found in hits.values() for hit in found]))}


def motion_control(pipe: Any, prompt: str = "the camera pans left", **settings: Any) -> tuple[float, dict[int, float]]:
    """Spearman correlation of requested and measured bucket, and the mean measured bucket of each requested one."""
    jobs: list[dict[str, Any]] = [
        {"image": fitted_photo(name), "prompt": prompt, "motion_bucket": bucket, "seed": 0}
        for bucket in BUCKETS
        for name in HELD_OUT_PHOTOS
    ]
    measured = [motion_bucket(motion_score(clip)) for clip in animate_photos(pipe, jobs, batch=6, **settings)]
    requested = [job["motion_bucket"] for job in jobs]
    fidelity = motion_fidelity(requested, measured)
    return fidelity.spearman, {bucket: mean for bucket, (mean, _) in fidelity.by_bucket.items()}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures, in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def measure(pipe: Any, per_move: int) -> dict[str, Any]:
    """The numbers of the model card, all on held-out photos: direction, motion control, and what the VAE keeps."""
    correlation, means = motion_control(pipe, **SETTINGS)
    kept = {}
    for name in HELD_OUT_PHOTOS:
        image = fitted_photo(name)
        decoded = decode_latents(pipe.vae, encode_frames(pipe.vae, image[None, None]))[0, 0]
        kept[name] = round(psnr(decoded, image), 2)
    return {
        "settings": SETTINGS,
        "direction": direction_score(pipe, per_move, **SETTINGS),
        "bucket_spearman": round(correlation, 3),
        "bucket_measured": means,
        "vae_psnr_db": kept,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny", help="builtin:tiny or a model directory")
    parser.add_argument("--per-move", type=int, default=3, metavar="N", help="animations of each of the six moves")
    arguments = parser.parse_args()
    pipe = CinemoPipeline.from_pretrained(arguments.model)
    print(json.dumps(measure(pipe, arguments.per_move), indent=2))


if __name__ == "__main__":
    main()
