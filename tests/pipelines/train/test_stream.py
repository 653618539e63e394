"""Training straight from videos: the clips of the prepared dataset, the same ones whenever they are asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from pipelines.dataset import reader
from pipelines.prepare.config import ExtractConfig, PrepareConfig
from pipelines.train import data
from pipelines.train import job as train
from pipelines.train.config import TrainConfig
from pipelines.train.losses import read_losses
from pipelines.train.stream import StreamReader
from tests.pipelines.conftest import SMALL
from tests.pipelines.train.plain import run_plain, small_config

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(
    videos: Path, prepare_config: PrepareConfig, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig:
    """A run from the same videos as the prepared dataset's, with the same sampling."""
    sampling = {**SMALL, "clips_per_video": prepare_config.clips_per_video}
    changes = {"dataset": str(videos), "stream": ExtractConfig(**sampling)}
    return small_config("unset", tmp_path_factory.mktemp("components")).model_copy(update=changes)


@pytest.fixture(scope="module")
def stream(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    actor = data.start(config, str(tmp_path_factory.mktemp("stream")))
    yield actor
    ray.kill(actor)


def test_an_epoch_holds_the_clips_of_the_prepared_dataset(prepared: str, stream: Any) -> None:
    clips = reader.ClipReader(prepared)
    expected = {clip.clip_id: clip for clip in (clips[place] for place in range(len(clips)))}
    stream_reader = StreamReader(stream)
    stream_reader.begin(0, None)
    streamed = [stream_reader[number] for number in range(len(clips))]
    assert {clip.clip_id for clip in streamed} == expected.keys()
    for clip in streamed:
        same = expected[clip.clip_id]
        assert (clip.caption, clip.bucket) == (same.caption, same.bucket)
        np.testing.assert_array_equal(clip.latents, same.latents)
    second = [stream_reader[number].clip_id for number in range(len(clips), len(clips) + 4)]
    assert second != [clip.clip_id for clip in streamed[:4]]  # another epoch, another order
    assert set(second) <= expected.keys()


def test_a_cursor_leads_to_the_same_clips_without_those_before(stream: Any) -> None:
    stream_reader = StreamReader(stream)
    stream_reader.begin(0, None)
    ids = [stream_reader[number].clip_id for number in range(12)]
    for number in (5, 8):
        cursor = json.loads(json.dumps(stream_reader.cursor(number)))  # as it comes out of a checkpoint
        stream_reader.begin(number, cursor)
        assert [stream_reader[number + more].clip_id for more in range(3)] == ids[number : number + 3]


@pytest.mark.long
def test_a_run_that_is_resumed_goes_on_with_the_clips_that_come_next(
    config: TrainConfig, stream: Any, tmp_path: Path, tracking_uri: str
) -> None:
    changes = {"output": str(tmp_path / "run"), "num_workers": 1, "tracking_uri": tracking_uri}
    config = config.model_copy(update=changes)
    for steps in (3, 6):
        summary = train.run(train.resolve(config.model_copy(update={"max_steps": steps})))
    assert summary["steps"] == 6
    stream_reader = StreamReader(stream)
    stream_reader.begin(0, None)
    np.testing.assert_allclose(read_losses(config.output), run_plain(config, 6, stream_reader).losses, rtol=1e-4)
    card = json.loads((tmp_path / "run" / "model" / "cinemo.json").read_text())
    assert card["lineage"]["dataset_fingerprint"] == summary["dataset_fingerprint"]
    with pytest.raises(ValueError, match=r"--stream.min-interval: .* with stream.min_interval 3, this job has 2"):
        train.resolve(config.model_copy(update={"stream": config.stream.model_copy(update={"min_interval": 2})}))


def test_videos_without_a_usable_clip_end_the_run_with_a_sentence(
    config: TrainConfig, ray_cluster: None, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    config = config.model_copy(update={"dataset": str(tmp_path)})
    stream_reader = StreamReader(data.start(config, str(tmp_path / "run")))
    stream_reader.begin(0, None)
    with pytest.raises(ValueError, match=r"no clip .* is usable: {'unreadable': 1}"):
        stream_reader[0]
