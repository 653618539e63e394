"""Calibrate motion: find the number to give the U-Net for each requested bucket, and write the table to the card.

    python recipes/builtin_tiny/calibrate.py --model cinemo/builtin/tiny --photos out/photos

Animates training photos over a range of numbers, and inverts the median response of those that can move enough. Takes
five minutes on one core.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.checkpoint import read_card, write_card
from cinemo.motion import NUM_BUCKETS, UNIFORM_MOTION, motion_score
from cinemo.pipeline import CinemoPipeline
from recipes.builtin_tiny.photos import load, training_photos
from recipes.builtin_tiny.scenes import crop

IDS = (-0.5, -0.2, 0.2, 0.7, 1.5, 2.5, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 19.5)
PROMPTS = ("the camera pans left", "the camera zooms in", "the picture rotates clockwise", "the camera pans down")
SIZE = (320, 512)
STILL = 0.05  # target measurement of bucket 0, in buckets


def respond(pipe: CinemoPipeline, photos: Path, pictures: int) -> np.ndarray:
    """Measure the motion of clips made with each of IDS, in buckets: (clips, len(IDS))."""
    names = training_photos(photos)
    rng = np.random.default_rng(5)
    rows = []
    for number in range(pictures):
        image = crop(load(photos, names[rng.integers(len(names))]), rng, SIZE, 0.7)
        prompt = PROMPTS[number % len(PROMPTS)]
        row: list[float] = []
        for start in range(0, len(IDS), 5):
            ids = list(IDS[start : start + 5])
            clips = pipe(
                [image] * len(ids), prompt, raw_motion_id=ids, seed=number,
                num_inference_steps=pipe.card.steps, guidance_scale=pipe.card.guidance,
            ).frames  # fmt: skip
            row += [NUM_BUCKETS * (1 - motion_score(clip)) for clip in clips]
        rows.append(row)
    return np.array(rows)


def invert(response: np.ndarray) -> list[float]:
    """For each bucket, find the number at which the median of the clips that can reach it is the bucket's middle."""
    ids = np.array(IDS)
    table = []
    for bucket in range(NUM_BUCKETS):
        target = bucket + 0.5 if bucket else STILL
        reaching = response[np.maximum.accumulate(response, 1)[:, -1] >= min(target, np.median(response[:, -1]))]
        curve = np.maximum.accumulate(np.median(reaching, axis=0))
        table.append(float(np.interp(target, curve + 1e-6 * ids, ids)))
    return [round(number, 2) for number in np.maximum.accumulate(table)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model directory, whose card is rewritten")
    parser.add_argument("--photos", type=Path, required=True, help="folder that photos.py filled")
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="training photos to animate")
    arguments = parser.parse_args()
    pipe = CinemoPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    table = invert(respond(pipe, arguments.photos, arguments.pictures))
    card = read_card(arguments.model)
    write_card(arguments.model, dataclasses.replace(card, motion={**UNIFORM_MOTION, "ids": table}))
    print(" ".join(f"{bucket}:{number:g}" for bucket, number in enumerate(table)))


if __name__ == "__main__":
    main()
