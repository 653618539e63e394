"""Outputs that an earlier version was killed over (tests/outputs/README.md) are finished by the jobs of today.

What was done stays as it is, to the byte; the same command makes what is missing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.animate import job as animate
from pipelines.animate.config import AnimateConfig
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.config import EvaluateConfig
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig
from pipelines.train import job as train
from pipelines.train.config import TrainConfig
from tests.pipelines.conftest import rows
from tests.pipelines.prepare.plain import prepare_plain

pytestmark = pytest.mark.ray

STORED = Path(__file__).parents[1] / "outputs"
SIZE: dict[str, Any] = {"num_frames": 4, "height": 64, "width": 64}
Files = dict[str, tuple[int, bytes]]


@pytest.fixture
def stored(bucket: Any, tmp_path: Path) -> Path:
    """A folder to unpack outputs in. What they were made of lies in s3://videos, where ids of rows look for it."""
    bucket.put(f"{STORED}/inputs/", "videos/", recursive=True)
    return tmp_path


def unpack(kind: str, folder: Path) -> str:
    """Unpack the output of a job; returns its path."""
    shutil.unpack_archive(STORED / f"{kind}.tar.xz", folder)
    return str(folder / kind)


def files(output: str, *folders: str) -> Files:
    """When each file below these folders of an output was written, and its bytes."""
    paths = [path for folder in folders for path in Path(output, folder).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def prepare_config(output: str, checkpoint: Path, tracking_uri: str) -> PrepareConfig:
    return PrepareConfig(
        input="s3://videos/clips.csv", output=output, model=str(checkpoint), clips_per_video=2, clips_per_file=2,
        encoders=1, tracking_uri=tracking_uri, **SIZE,
    )  # fmt: skip


def test_a_dataset_is_finished(stored: Path, ray_cluster: None, checkpoint: Path, tracking_uri: str) -> None:
    output = unpack("prepare", stored)
    before = files(output, "data", "rejects")
    clips = pq.read_table(f"{output}/data").num_rows
    summary = prepare.run(prepare.resolve(prepare_config(output, checkpoint, tracking_uri)))
    assert before.items() <= files(output, "data", "rejects").items()
    assert summary["counts"] == {
        "videos": 6, "clips": 10, "rejected_videos": 1, "rejected_clips": 0, "rejects": {"unreadable": 1}
    }  # fmt: skip
    assert summary["new_clips"] == 10 - clips > 0
    # The fingerprint that the version of then gave to the whole dataset.
    assert summary["fingerprint"] == json.loads(Path(unpack("train", stored), "settings.json").read_text())["dataset"]
    # Clips of both versions are alike.
    plain = str(stored / "plain")
    prepare_plain(prepare_config(plain, checkpoint, tracking_uri))
    for clip, expected in zip(rows(output), rows(plain), strict=True):
        assert clip["clip_id"] == expected["clip_id"]
        assert clip["score"] == pytest.approx(expected["score"], abs=1e-3)
        np.testing.assert_allclose(clip["latents"], expected["latents"], atol=0.02)


def test_a_catalog_is_finished(stored: Path, ray_cluster: None, checkpoint: Path, tracking_uri: str) -> None:
    """Of six rows, three are listed and one is rejected; one has its video, and one the latents of its video."""
    output = unpack("animate", stored)
    before = files(output, "results", "rejects", "videos")
    (sampled,) = [path.stem for path in Path(output, "latents").iterdir()]
    config = AnimateConfig(
        catalog="s3://videos/catalog.jsonl", output=output, model=str(checkpoint), size="64x64", num_frames=4,
        guidance_scale=1.0, max_replicas=1, tracking_uri=tracking_uri,
    )  # fmt: skip
    summary = animate.run(animate.resolve(config))
    after = files(output, "results", "rejects", "videos")
    assert before.items() <= after.items()
    assert summary["counts"] == {
        "rows": 6, "listed": 5, "videos": 5, "rejected": 1, "rejects": {"missing": 1}
    }  # fmt: skip
    assert summary["new_videos"] == 1
    new = {Path(path).name for path in after.keys() - before.keys() if "/videos/" in path}
    assert new == {f"{sampled}.mp4", f"{sampled}.thumb.webp", f"{sampled}.json"}
    assert not list(Path(output, "latents").iterdir())


def test_an_evaluation_is_finished(stored: Path, ray_cluster: None, checkpoint: Path, tracking_uri: str) -> None:
    output = unpack("evaluate", stored)
    before = files(output, "rows", "rejects", "videos")
    config = EvaluateConfig(
        dataset="s3://videos/clips.csv", output=output, model=[str(checkpoint)], num_inference_steps=1, workers=1,
        max_reject_fraction=1.0, tracking_uri=tracking_uri, **SIZE,
    )  # fmt: skip
    summary = evaluate.run(evaluate.resolve(config))
    assert before.items() <= files(output, "rows", "rejects", "videos").items()
    assert summary["counts"] == {"cases": 6, "rows": 10, "rejects": {"unreadable": 2}}
    assert summary["new_rows"] == 3


def test_a_training_is_finished(stored: Path, ray_cluster: None, checkpoint: Path, tracking_uri: str) -> None:
    output, dataset, components = unpack("train", stored), str(stored / "dataset"), stored / "components"
    prepare_plain(prepare_config(dataset, checkpoint, tracking_uri))
    shutil.copytree(checkpoint, components)
    shutil.copy(STORED / "unet.json", components / "unet" / "config.json")  # a run from nothing reads no weights
    before = files(output, "checkpoints/step_0000020")
    losses, validation = (Path(output, name).read_bytes() for name in ("losses.csv", "validation.csv"))
    config = TrainConfig(
        dataset=dataset, output=output, init="none", components=str(components), zero_stage=0, num_workers=1,
        max_steps=22, checkpoint_every=20, total_batch=2, micro_batch=2, warmup_steps=2, ema_decay=0.9,
        tracking_uri=tracking_uri,
    )  # fmt: skip
    summary = train.run(train.resolve(config))
    assert summary["steps"] == 22
    assert before
    assert before.items() <= files(output, "checkpoints/step_0000020").items()
    for name, old in (("losses.csv", losses), ("validation.csv", validation)):
        assert Path(output, name).read_bytes().startswith(old)
