"""The whole chain learns: four clips through the prepare and train jobs, and their images move as the clips do.

A fault anywhere between a video file and a sampled frame (residuals, noise, schedule, conditioning, averaging, export,
sampling, decoding) keeps the animations from the clips.
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from cinemo import CinemoPipeline
from cinemo.video import sample_clip, write_video
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig
from pipelines.train import job as train
from tests.pipelines.conftest import SMALL, rows
from tests.pipelines.train.plain import small_config

INTERVAL = 3
STEPS = 800
SIDE = 128  # pixels of a picture: four cells of the built-in autoencoder
# Two colours, how many waves fit across and down, and where they go: the autoencoder keeps 43 dB of them.
WAVES = {
    "a wave moves right": ((209, 139, 94), (81, 91, 116), (1.0, 0.4), (1, 0)),
    "a wave moves left": ((88, 138, 198), (72, 62, 62), (1.0, -0.6), (-1, 0)),
    "a wave moves down": ((185, 158, 119), (95, 101, 111), (0.5, 1.0), (0, 1)),
    "a wave moves up": ((195, 174, 156), (105, 76, 74), (-0.3, 1.0), (0, -1)),
}


def wave(light: tuple[int, ...], dark: tuple[int, ...], waves: tuple[float, float], way: tuple[int, int]) -> np.ndarray:
    """uint8 (10, SIDE, SIDE, 3): colours that change smoothly, and move by a 25th of the picture a frame."""
    time, y, x = np.mgrid[0:10, 0:SIDE, 0:SIDE] / np.array([25, SIDE, SIDE]).reshape(3, 1, 1, 1)
    phase = waves[0] * (x - way[0] * time) + waves[1] * (y - way[1] * time)
    weight = (0.5 + 0.5 * np.sin(2 * np.pi * phase))[..., None]
    return (weight * light + (1 - weight) * dark).round().astype(np.uint8)


def psnr(ours: np.ndarray, true: np.ndarray) -> float:
    """Peak signal to noise, in dB."""
    return float(10 * np.log10(255**2 / np.square(ours.astype(float) - true).mean()))


@pytest.mark.ray
@pytest.mark.long
def test_a_model_that_overfits_four_clips_animates_their_images_with_25_db(tmp_path: Path, ray_cluster: None) -> None:
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["contentUrl", "name"])
        for number, (caption, look) in enumerate(WAVES.items()):
            write_video(tmp_path / f"{number}.mp4", wave(*look), fps=24)
            table.writerow([f"{number}.mp4", caption])
    sampling = {**SMALL, "height": SIDE, "width": SIDE, "min_interval": INTERVAL, "max_interval": INTERVAL}
    prepared = str(tmp_path / "dataset")
    config = PrepareConfig(input=str(tmp_path / "captions.csv"), output=prepared, **sampling)
    prepare.run(prepare.resolve(config))
    changes = {
        "output": str(tmp_path / "run"),
        "max_steps": STEPS,
        "checkpoint_every": STEPS,
        # Of velocities, unlike noise, the little that is learned in two minutes is enough at the highest noise levels.
        "prediction_type": "v_prediction",
        "learning_rate": 2e-3,
        "warmup_steps": 20,
        "lr_schedule": "cosine",  # at a constant rate, one of the clips may end at 23 dB on another processor
        "ema_decay": 0.97,
        "prompt_drop": 0.0,
        # One worker: of so small a model, a step of four clips takes hardly longer than one of two.
        "num_workers": 1,
        "micro_batch": 4,
    }
    summary = train.run(train.resolve(small_config(prepared, tmp_path).model_copy(update=changes)))

    pipe = CinemoPipeline.from_pretrained(summary["model"])
    clips = rows(prepared)
    assert sorted(clip["caption"] for clip in clips) == sorted(WAVES)
    true = [sample_clip(clip["uri"], clip["start_frame"], INTERVAL, 4, (SIDE, SIDE)) for clip in clips]
    animations = pipe(
        [frames[0] for frames in true],
        [clip["caption"] for clip in clips],
        motion_bucket=[clip["bucket"] for clip in clips],
        num_frames=4,
        num_inference_steps=20,
        guidance_scale=1.0,  # the model has seen no empty prompt
        seed=[0, 1, 2, 3],
    ).frames
    reached = [psnr(ours, frames) for ours, frames in zip(animations, true, strict=True)]
    still = [psnr(np.repeat(frames[:1], 3, axis=0), frames[1:]) for frames in true]
    print("PSNR in dB:", np.round(reached, 1), "still images:", np.round(still, 1))
    assert max(still) < 20  # what an animation without motion gets
    assert min(reached) > 25
