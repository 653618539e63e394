"""Validation: means by timestep and by motion, and the clips that a stream holds out.

test_job.py tests that the numbers of a run are right at every ZeRO stage, and that validating changes nothing.
"""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from cinemo.motion import UNIFORM_MOTION
from pipelines.dataset import reader
from pipelines.prepare.config import ExtractConfig, PrepareConfig
from pipelines.train import data
from pipelines.train.batch import Inputs
from pipelines.train.stream import StreamReader
from pipelines.train.validation import draw, validate
from tests.pipelines.conftest import SMALL, rows
from tests.pipelines.train.plain import small_config
from tests.pipelines.train.validation_reference import held_out_rows, share_of


def test_means_are_taken_by_timestep_and_by_motion_and_leave_out_clips_that_are_no_numbers() -> None:
    def clip(bucket: int, value: float, width: int = 1) -> reader.Clip:
        return reader.Clip(f"{bucket}", "", bucket, np.full((2, 1, 1, width), value, np.float32), None)

    def compute_losses(inputs: Inputs) -> torch.Tensor:
        """Give the bucket plus a tenth of the number of the fifth."""
        latents, _, buckets, timesteps, _ = inputs
        return buckets + timesteps // 200 / 10 + 0 * latents.flatten(1).sum(1)

    draws = functools.partial(
        draw, embed=lambda caption: torch.zeros(1, 1), motion=UNIFORM_MOTION, num_train_timesteps=1000
    )

    class Listed(list[reader.Clip]):
        def shape_index(self, number: int) -> int:
            return self[number].latents.shape[-1]

    clips: Any = Listed([clip(3, 1.0), clip(7, 1.0, width=2), clip(9, math.nan), clip(7, 2.0)])
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = [
            validate(compute_losses, draws, clips, [0, 1, 2, 3], micro, torch.device("cpu")) for micro in (1, 3, 99)
        ]
    finally:
        torch.distributed.destroy_process_group()
    mean = (3 + 7 + 7) / 3
    by_fifth = {f"validation_loss_q{fifth}": mean + (fifth - 1) / 10 for fifth in range(1, 6)}
    by_bucket = {"validation_loss_bucket_03": 3.2, "validation_loss_bucket_07": 7.2}
    for means in found:
        assert means == pytest.approx({"validation_loss": mean + 0.2, **by_fifth, **by_bucket})


@pytest.mark.ray
@pytest.mark.long
def test_a_stream_makes_no_training_clips_of_held_out_videos_and_judges_by_them(
    prepared: str, prepare_config: PrepareConfig, ray_cluster: None, videos: Path, tmp_path: Path
) -> None:
    share = share_of({row["uri"] for row in rows(prepared)}, 2)
    config = small_config(prepared, tmp_path).model_copy(update={"validation_share": share})
    sampling = {**SMALL, "clips_per_video": prepare_config.clips_per_video}
    stream = config.model_copy(update={"dataset": str(videos), "stream": ExtractConfig(**sampling)})
    actor = data.start(stream, str(tmp_path))
    streamed = StreamReader(actor)
    streamed.begin(0, None)
    held_out = {row["clip_id"] for row in held_out_rows(config)}
    numbers = streamed.held_out(99)
    assert {streamed[number].clip_id for number in numbers} == held_out
    assert streamed.held_out(2) == numbers[:2]
    trained_on = {row["clip_id"] for row in rows(config.dataset)} - held_out
    assert {streamed[number].clip_id for number in range(len(trained_on))} == trained_on
    ray.kill(actor)
