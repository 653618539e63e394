"""Validation: means by timestep and by motion, and the clips that a stream holds out.

test_job.py tests that the numbers of a run are right at every ZeRO stage, and that validating changes nothing.
"""

import functools
import math
import multiprocessing
import os
import unittest.mock
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from cinemo.motion import UNIFORM_MOTION
from cinemo.unet import CinemoUNet, pack
from pipelines.dataset import reader
from pipelines.prepare.config import ExtractConfig, PrepareConfig
from pipelines.train import data
from pipelines.train.batch import Inputs
from pipelines.train.config import TrainConfig
from pipelines.train.engine import cast_inputs, start_engine, take_step
from pipelines.train.stream import StreamReader
from pipelines.train.trainer import Trainer
from pipelines.train.validation import draw, validate
from tests.pipelines.conftest import SMALL, rows
from tests.pipelines.train.plain import small_config
from tests.pipelines.train.validation_reference import held_out_rows, share_of
from tests.tiny import TINY


class Listed(list[reader.Clip]):
    """Clips in memory, as validation reads them."""

    def shape_index(self, number: int) -> int:
        """Width of the clip's latents, which stands for its shape."""
        return self[number].latents.shape[-1]


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


def test_validation_in_bfloat16_computes_with_the_weights_of_its_step() -> None:
    """On CPUs, convolutions cache a copy of their weights; DeepSpeed writes weights in a way that no version shows."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:  # DeepSpeed's set-up stays there
        for before, after, expected in another.map(validation_losses, (2, 3)):
            assert abs(before - expected) > 0.2 * expected
            assert after == pytest.approx(expected, rel=2e-2)


def validation_losses(stage: int) -> tuple[float, float, float]:
    """A worker's validation loss before a step, after it, and after it without oneDNN's operators."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.manual_seed(0)
    made: Any = Trainer.__new__(Trainer)
    made.config = TrainConfig(
        dataset="a", output="b", num_workers=1, total_batch=2, micro_batch=2, zero_stage=stage, precision="bf16",
        learning_rate=0.1, warmup_steps=0,
    )  # fmt: skip
    made.engine, made.optimizer = start_engine(made.config, CinemoUNet(**TINY).train(), 1)
    made.unet, made.device, made.rank = cast_inputs(made.engine), torch.device("cpu"), 1
    made.alphas_cumprod, made.num_train_timesteps = torch.linspace(0.9, 0.1, 1000), 1000
    made.prediction_type, made.motion, made.validation_rows = "epsilon", UNIFORM_MOTION, []
    made.text_features = lambda caption: torch.ones(7, 48)
    latents = np.random.default_rng(0).standard_normal((2, 3, 4, 8, 8), np.float32)
    made.clips = Listed(reader.Clip(f"{place}", "", 5 * place, one, None) for place, one in enumerate(latents))
    made.held_out = [0, 1]
    made.validate(0)
    draws = functools.partial(draw, embed=made.text_features, motion=made.motion, num_train_timesteps=1000)
    made.engine.backward(made.compute_losses(draws([(made.clips[0], 1), (made.clips[1], 3)])).mean())
    take_step(made.engine, made.optimizer)
    made.validate(1)
    with unittest.mock.patch.object(pack, "is_fast", return_value=False):  # PyTorch's own layers cache nothing
        made.validate(1)
    before, after, expected = (row["validation_loss"] for row in made.validation_rows)
    return before, after, expected


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
