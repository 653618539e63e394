"""Batches by the weights of motion buckets."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cinemo.motion import NUM_BUCKETS
from pipelines.dataset import parts, reader
from pipelines.dataset.balance import BalancedClips, balanced_positions
from pipelines.train import data
from pipelines.train.config import TrainConfig
from tests.pipelines.conftest import rows

COUNTS = [500, 0, 37, 3]  # clips of each bucket
SHARES = [0.25, 0.0, 0.5, 0.25]


def draw(step: int, total_batch: int = 12, seed: int = 0) -> list[int]:
    """Positions of a step, where bucket b has the positions after those of the buckets before it."""
    counts = np.array(COUNTS)
    return balanced_positions(np.arange(counts.sum()), counts, np.array(SHARES), total_batch, seed, step)


def buckets(positions: list[int]) -> Counter[int]:
    return Counter(int(bucket) for bucket in np.searchsorted(np.cumsum(COUNTS), positions, side="right"))


def test_every_step_has_the_shares_and_no_clip_twice() -> None:
    for step in range(50):
        assert buckets(draw(step)) == {0: 3, 2: 6, 3: 3}
        assert len(set(draw(step))) == 12
    seen = Counter(position for step in range(2500) for position in draw(step))
    assert len(seen) == 540  # no clip is left out for good


def test_shares_that_do_not_divide_are_right_on_average() -> None:
    steps = [buckets(draw(step, total_batch=5)) for step in range(400)]
    assert {sum(step.values()) for step in steps} == {5}
    for bucket, share in enumerate(SHARES):
        sizes = [step[bucket] for step in steps]
        assert max(sizes) - min(sizes) <= 1
        assert np.mean(sizes) == pytest.approx(5 * share, abs=0.1)


def test_a_bucket_with_fewer_clips_than_its_share_repeats_them() -> None:
    assert buckets(draw(0, total_batch=40)) == {0: 10, 2: 20, 3: 10}


def test_a_step_is_the_same_whoever_draws_it() -> None:
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(7) != draw(7, seed=1)


def test_training_draws_by_the_weights_of_the_dataset_and_holds_out_the_same_clips(
    prepared: str, tmp_path: Path
) -> None:
    share, dataset = 0.3, tmp_path / "dataset"
    plain = reader.ClipReader(prepared, share)
    of_clip = {row["clip_id"]: row["bucket"] for row in rows(prepared)}
    of_position = [of_clip[plain[position].clip_id] for position in range(len(plain))]
    assert plain.buckets().tolist() == of_position
    rarest = Counter(of_position).most_common()[-1][0]
    weights = [2.0 * (bucket == rarest) for bucket in range(NUM_BUCKETS)]
    shutil.copytree(prepared, dataset)
    described = {**reader.read_description(prepared), "bucket_weights": weights}
    (dataset / "dataset.json").write_text(json.dumps(described))
    config = TrainConfig(dataset=str(dataset), output="b", validation_share=share, balance_buckets=True)
    source = data.start(config, str(tmp_path / "run"))
    (dataset / "dataset.json").write_text(json.dumps({**described, "bucket_weights": None}))
    clips = data.open_clips(config, source)  # as a restarted worker does: with the weights of the job's start
    assert {of_position[position] for position in clips.positions(8, 0, 3)} == {rarest}
    assert clips.held_out(5) == plain.held_out(5)
    assert clips[0].clip_id == plain[0].clip_id
    with pytest.raises(ValueError, match="no clip to train on has a bucket_weights above 0"):
        BalancedClips(plain, [0.0] * NUM_BUCKETS)


def test_the_shares_are_equal_with_the_weights_that_prepare_writes(prepared: str, tmp_path: Path) -> None:
    survey = parts.survey(prepared)
    filled = sum(1 for count in survey.buckets if count)
    weights = [survey.clips / (filled * count) if count else 0.0 for count in survey.buckets]
    shares = BalancedClips(reader.ClipReader(prepared), weights).groups[0].shares
    assert shares[shares > 0] == pytest.approx([1 / filled] * filled)
