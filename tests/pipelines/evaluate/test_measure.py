"""One case becomes one row: what the model is asked for, what is measured, and what a fault becomes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cinemo.motion import motion_bucket, motion_score
from cinemo.video import VideoError, sample_clip
from pipelines.evaluate import datasets, measure
from pipelines.evaluate.animators import AnimationRequest
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant
from tests.pipelines.evaluate.plain import evaluate_plain

SIZE = (64, 64)
MODEL = Variant("model", "", {})


def config(output: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"dataset": "synthetic:2:pan", "output": str(output), "num_frames": 6, **changes})


def case(**changes: Any) -> dict[str, Any]:
    return {**datasets.read("synthetic:2:pan", None, 0)[1], "id": "id1", **changes}


def row_of(settings: EvaluateConfig, animate: Any, of: dict[str, Any] | None = None) -> dict[str, Any]:
    variant = Variant(REAL, "", {}) if animate is None else MODEL
    return measure.measure(of or case(), variant, animate, measure.Networks(settings, "cpu"), settings, SIZE)


def test_a_model_is_asked_for_the_real_clip_s_motion_from_its_first_frame(tmp_path: Path) -> None:
    settings = config(tmp_path)
    clip, image = measure.real_clip(case(), settings, SIZE, lambda function, *rest: function(*rest))
    asked: list[AnimationRequest] = []

    def animate(request: AnimationRequest, varied: Any) -> np.ndarray:
        asked.append(request)
        return np.repeat(request.image[None], request.num_frames, axis=0)

    row = row_of(settings, animate)
    assert np.array_equal(asked[0].image, clip[0])
    assert np.array_equal(image, clip[0])
    assert asked[0].motion_bucket == motion_bucket(motion_score(clip)) == row["requested_bucket"]
    assert asked[0].prompt == case()["caption"]
    assert (row["measured_bucket"], row["psnr"], row["agrees"]) == (0, 100.0, False)  # a still copy of the photo
    stored = sample_clip(tmp_path / row["video"], 0, 1, 6)
    assert np.abs(stored.astype(int) - clip[0]).mean() < 5
    assert row_of(config(tmp_path, motion_bucket=7), animate)["requested_bucket"] == 7


def test_the_image_of_a_real_video_is_one_of_its_clip_s_frames_and_always_the_same(
    moving_video: Path, tmp_path: Path
) -> None:
    def image_for(seed: int) -> tuple[np.ndarray, np.ndarray]:
        of = {"uri": str(moving_video), "caption": "x", "kind": None, "fault": None}
        return measure.real_clip(of, config(tmp_path, seed=seed), SIZE, lambda function, *rest: function(*rest))

    found = set()
    for seed in range(8):
        clip, image = image_for(seed)
        assert any(np.array_equal(image, frame) for frame in clip)
        assert np.array_equal(image, image_for(seed)[1])
        found.add(next(k for k, frame in enumerate(clip) if np.array_equal(image, frame)))
    assert len(found) > 1


@pytest.mark.parametrize(
    ("error", "reason"), [(VideoError("missing", "no such video"), "missing"), (RuntimeError("out of it"), "internal")]
)
def test_a_fault_of_a_model_is_a_reject_of_the_case(tmp_path: Path, error: Exception, reason: str) -> None:
    def animate(request: AnimationRequest, varied: Any) -> np.ndarray:
        raise error

    row = row_of(config(tmp_path), animate)
    assert (row["stage"], row["reason"]) == ("animate", reason)
    assert str(error) in row["message"]
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_read_is_a_reject(tmp_path: Path) -> None:
    of = case(uri=str(tmp_path / "none.mp4"), kind=None, direction=None)
    row = row_of(config(tmp_path), None, of)
    assert (row["stage"], row["reason"]) == ("read", "missing")


def test_a_video_that_cannot_be_read_is_a_reject_of_every_variant_and_the_rest_is_reported(
    videos: Path, checkpoint: Path, tracking_uri: str, tmp_path: Path
) -> None:
    settings = config(
        tmp_path / "out", dataset=str(videos), model=[str(checkpoint)], metrics="motion,fidelity",
        max_reject_fraction=0.5, tracking_uri=tracking_uri, height=64, width=64, num_frames=10, num_inference_steps=1,
        min_interval=4,  # wherever the clip of broken.mp4 begins, which its path decides, it reaches the broken half
    )  # fmt: skip
    made = evaluate_plain(settings)
    rejects = pq.read_table(tmp_path / "out" / "rejects").to_pylist()
    # Two each: the real clip's row and the model's.
    assert Counter(row["reason"] for row in rejects) == {"too_short": 2, "corrupt": 2}, rejects
    assert made["counts"] == {"cases": 8, "rows": 12, "rejects": {"corrupt": 2, "too_short": 2}}
    assert not made["too_many_rejects"]
    measured = pq.read_table(tmp_path / "out" / "rows").to_pylist()
    assert all(row["prompt"] for row in measured)
    assert {row["seed"] for row in measured if row["variant"] == REAL} == {
        row["seed"] for row in measured if row["variant"] != REAL
    }
