"""The inputs that are drawn for clips."""

from typing import Any

import numpy as np
import torch

from cinemo.motion import UNIFORM_MOTION
from pipelines.dataset.reader import Clip
from pipelines.train.batch import draw_batch
from pipelines.train.config import TrainConfig


def test_offset_noise_is_shared_by_all_cells_and_frames_of_a_channel_and_changes_nothing_else() -> None:
    latents = np.zeros((4, 3, 5, 6), np.float32)
    clips = [Clip(str(number), "", 3, latents, np.zeros((2, 8), np.float32)) for number in range(200)]

    def draw(**settings: Any) -> tuple[torch.Tensor, ...]:
        config = TrainConfig(dataset="a", output="b", prompt_drop=0.0, **settings)
        return draw_batch(config, 7, clips, lambda caption: torch.zeros(2, 8), UNIFORM_MOTION, 1000)

    *plain, noise = draw()
    *same, with_offset = draw(noise_offset=0.5)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    offset = with_offset - noise
    assert offset.shape == (200, 3, 3, 5, 6)
    assert offset.flatten(2).std(dim=2).max() < 1e-6
    assert 0.45 < offset[:, :, 0, 0, 0].std() < 0.55
