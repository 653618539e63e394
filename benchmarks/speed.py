"""Speed and quality of `--speed balanced` and `fast` against `paper`, on a built-in model.

    OMP_NUM_THREADS=2 python benchmarks/speed.py [--repeats 5] [--model builtin:tiny]

The few steps in builtin:tiny's card are cheaper than any of the three.

Time of one animation, interleaved. Then 18 animations with each (three held-out photos, six motion buckets): PSNR of
frames 1 to 15 against `paper`'s, Spearman's correlation of the requested with the measured bucket (motion fidelity),
and PSNR of frame 0 against the photo (consistency). Also the golden model's case, of random weights: PSNR against
`paper` alone. Exits 1 when `balanced` is under 4 times as fast or under 30 dB, or when
`fast` is under 8 times as fast, or 0.03 in motion fidelity or 0.5 dB in consistency below
`paper`. Takes about six minutes on two cores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import compare, ratio, report

from cinemo import CinemoPipeline
from cinemo.image import fit_pixels
from cinemo.latents import to_frames
from cinemo.metrics import psnr
from cinemo.metrics.frames import first_frame_fidelity
from cinemo.metrics.statistics import motion_fidelity
from cinemo.motion import motion_bucket, motion_score
from cinemo.samplers import SPEEDS
from cinemo.synthetic.images import HELD_OUT_PHOTOS, photo

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
BUCKETS = (0, 4, 8, 12, 16, 19)
PROMPTS = ("the camera pans left", "the camera zooms in", "the camera pans up")
BOUND = {"balanced": 4.0, "fast": 8.0}
NEAR_DB, MOTION, CONSISTENCY_DB = 30.0, 0.03, 0.5


def animations(pipe: CinemoPipeline, speed: str) -> list[np.ndarray]:
    """Animate each photo with each bucket."""
    settings = {**SPEEDS[speed], "guidance_scale": pipe.card.guidance}
    names = zip(HELD_OUT_PHOTOS, PROMPTS, strict=True)
    return [
        pipe(photo(name), prompt, motion_bucket=bucket, **settings).frames[0]
        for name, prompt in names
        for bucket in BUCKETS
    ]


def quality(pipe: CinemoPipeline, clips: list[np.ndarray]) -> tuple[float, float]:
    """Motion fidelity and consistency of the clips returned by `animations`."""
    measured = [motion_bucket(motion_score(clip)) for clip in clips]
    size = pipe.card.sizes[0]
    photos = [to_frames(fit_pixels(photo(name), *size))[0] for name in HELD_OUT_PHOTOS]
    first = [first_frame_fidelity(clip, photos[index // len(BUCKETS)])[0] for index, clip in enumerate(clips)]
    return motion_fidelity(BUCKETS * len(HELD_OUT_PHOTOS), measured).spearman, float(np.mean(first))


def golden_frames(speed: str) -> np.ndarray:
    """Sample the golden checkpoint from the golden noise and image: (N, H, W, 3)."""
    with np.load(GOLDEN / "sampling.npz") as case:
        pipe = CinemoPipeline.from_pretrained(GOLDEN / "checkpoint", vae="frame")
        pipe.set_progress_bar_config(disable=True)
        return pipe(
            None,
            str(case["prompt"]),
            raw_motion_id=int(case["motion_bucket_id"]),
            guidance_scale=float(case["guidance_scale"]),
            image_latents=torch.from_numpy(case["base_content"]),
            latents=torch.from_numpy(case["init_latents"]),
            **SPEEDS[speed],
        ).frames[0]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="builtin:tiny")
    options = parser.parse_args(arguments)
    pipe = CinemoPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)

    def once(speed: str) -> Any:
        settings = {**SPEEDS[speed], "guidance_scale": pipe.card.guidance}
        return lambda: pipe(photo(HELD_OUT_PHOTOS[0]), PROMPTS[0], **settings)

    seconds = compare({speed: once(speed) for speed in SPEEDS}, options.repeats)
    paper = animations(pipe, "paper")
    fidelity, consistency = quality(pipe, paper)
    exact = golden_frames("paper")
    code = 0
    for speed, bound in BOUND.items():
        faster = ratio(seconds["paper"], seconds[speed])
        clips = animations(pipe, speed)
        near = [psnr(clip[1:], expected[1:]) for clip, expected in zip(clips, paper, strict=True)]
        measured_fidelity, measured_consistency = quality(pipe, clips)
        kept = {
            "balanced": float(np.mean(near)) >= NEAR_DB,
            "fast": measured_fidelity >= fidelity - MOTION and measured_consistency >= consistency - CONSISTENCY_DB,
        }
        code |= report(
            f"one animation, --speed {speed} against --speed paper",
            faster,
            passed=faster.ratio >= bound and kept[speed],
            bound=bound,
            psnr_against_paper=float(np.mean(near)),
            lowest_psnr=min(near),
            motion_fidelity=measured_fidelity,
            motion_fidelity_of_paper=fidelity,
            consistency_db=measured_consistency,
            consistency_db_of_paper=consistency,
            golden_psnr=psnr(golden_frames(speed)[1:], exact[1:]),
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
