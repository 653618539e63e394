"""Captioned procedural clips with known motion: data for tests, for the demo and for the built-in model.

images.py draws still images, captions.py words the motion, plan.py chooses it, render.py makes the frames; this file
is the interface.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cinemo import provenance
from cinemo.synthetic.captions import plain_caption
from cinemo.synthetic.plan import DIRECTIONS, KINDS, Plan, make_plan
from cinemo.synthetic.render import render

__all__ = [
    "DIRECTIONS",
    "KINDS",
    "Plan",
    "SyntheticClip",
    "make_clip",
    "make_plan",
    "plain_caption",
    "render",
    "write_clips",
]

VIDEO_STEP = 1 / 6  # written videos are slower than clips: a clip takes every 3rd to 10th of their frames


@dataclass(frozen=True)
class SyntheticClip:
    """A clip and its ground truth. Only frames and caption are for training; the rest is for evaluation."""

    frames: np.ndarray  # uint8 (N, H, W, 3)
    caption: str
    kind: str  # one of KINDS
    direction: str  # one of DIRECTIONS[kind]; in a pan to the "left" the camera turns left, so content moves right
    strength: float  # in [0, 1]


def make_clip(
    seed: int,
    size: tuple[int, int] = (128, 192),
    num_frames: int = 16,
    kinds: tuple[str, ...] | None = None,
    held_out: bool = False,
    frame_step: float = 1.0,
) -> SyntheticClip:
    """Clip number `seed` of an endless series; the same arguments give the same bytes on one machine.

    size: (H, W) in pixels. kinds: names from KINDS, all when None. held_out: use photos that no training clip shows.
    frame_step: time between frames; below 1 the motion is slower. Raises ValueError for an unknown kind.
    """
    duration = (num_frames - 1) * frame_step
    plan = make_plan(seed, size[1] / size[0], duration, kinds, held_out)
    frames = render(plan, size, num_frames, frame_step)
    return SyntheticClip(frames, plan.caption, plan.kind, plan.direction, plan.strength)


def write_clips(
    folder: str | Path,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (128, 192),
    num_frames: int = 72,
    fps: int = 24,
    kinds: tuple[str, ...] | None = None,
) -> Path:
    """Write `count` videos and captions.csv, with WebVid's columns, into the folder; returns the CSV's path.

    Column contentUrl is the file's name, relative to the CSV; name is the caption. Videos are long and slow enough to
    be sampled with frame intervals of 3 to 10. Files of the same names are replaced.
    """
    from cinemo.video import write_video  # the only part that needs a video library

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(seed, seed + count):
        clip = make_clip(number, size, num_frames, kinds, frame_step=VIDEO_STEP)
        name = f"{number:06d}_{clip.kind}_{clip.direction}.mp4"
        write_video(folder / name, clip.frames, fps, provenance.DRAWN)
        seconds = round(num_frames / fps)
        rows.append([number, name, clip.caption, "synthetic", f"PT00H00M{seconds:02d}S"])
    path = folder / "captions.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "name", "page_dir", "duration"])
        writer.writerows(rows)
    return path
