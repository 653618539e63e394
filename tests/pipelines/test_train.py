"""Training on two real DeepSpeed workers: every ZeRO stage, resuming, the exported model, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from cinemo import CinemoPipeline
from cinemo import checkpoint as model_directory
from pipelines import prepare, train
from tests.pipelines.plain import plain_losses

pytestmark = pytest.mark.ray
STEPS = 100
# Adam's first steps are the gradient's signs: at this rate, a difference in the last bit grows tenfold in two steps.
COMPARED = 8


@pytest.fixture(scope="session")
def train_config(prepare_config: prepare.PrepareConfig, summary: dict[str, Any]) -> train.TrainConfig:
    """The tiny preset from nothing, on small synthetic clips; `output` is for each test to set."""
    return train.TrainConfig(
        dataset=prepare_config.output,
        output="unset",
        init="none",
        max_steps=STEPS,
        total_batch=4,
        micro_batch=2,
        checkpoint_every=50,
    )


@pytest.fixture(scope="session")
def reference(train_config: train.TrainConfig) -> list[float]:
    return plain_losses(train_config, COMPARED)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_loss_falls_below_half_and_equals_plain_pytorch_at_every_zero_stage(
    train_config: train.TrainConfig, reference: list[float], tmp_path: Path, stage: int
) -> None:
    config = train_config.model_copy(update={"output": str(tmp_path / "run"), "zero_stage": stage})
    said = train.run(config)
    losses = train.read_losses(config.output)
    assert said["steps"] == len(losses) == STEPS
    np.testing.assert_allclose(losses[:COMPARED], reference, rtol=1e-4)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    check_export(config, said)
    check_tracked(tmp_path, config, said)
    with pytest.raises(ValueError, match=r"--seed: the run in .* has 0, this command 1"):
        train.check(config.model_copy(update={"seed": 1}))


def check_export(config: train.TrainConfig, said: dict[str, Any]) -> None:
    """The exported directory is a whole model that animates, and says where it came from."""
    card = model_directory.read_card(said["model"])
    assert (card.sizes, card.lengths) == ([(64, 64)], [4])
    assert card.lineage["dataset_fingerprint"] == said["dataset_fingerprint"]
    assert card.lineage["steps"] == STEPS
    assert said["model_fingerprint"] == model_directory.fingerprint(said["model"])
    image = np.full((64, 64, 3), 128, np.uint8)
    pipe = CinemoPipeline.from_pretrained(said["model"])
    frames = pipe(image, "a photo", num_frames=4, height=64, width=64, num_inference_steps=2).frames
    assert frames.shape == (1, 4, 64, 64, 3)


def check_tracked(folder: Path, config: train.TrainConfig, said: dict[str, Any]) -> None:
    """MLflow's database beside the output has the run with parameters, metrics, tags and the loss curve."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    run = client.get_run(said["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["zero_stage"] == str(config.zero_stage)
    assert run.data.tags["dataset_fingerprint"] == said["dataset_fingerprint"]
    assert run.data.tags["model_fingerprint"] == said["model_fingerprint"]
    history = {metric.step: metric.value for metric in client.get_metric_history(said["run_id"], "loss")}
    assert sorted(history) == list(range(1, STEPS + 1))
    assert history[STEPS] == pytest.approx(train.read_losses(config.output)[-1])
    assert [file.path for file in client.list_artifacts(said["run_id"])] == ["loss.png"]


def changed_dataset(config: train.TrainConfig, folder: Path, **changes: Any) -> train.TrainConfig:
    """The same run on a copy of its dataset whose description says something else."""
    shutil.copytree(config.dataset, folder / "ds")
    path = folder / "ds" / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return config.model_copy(update={"dataset": str(folder / "ds"), "output": str(folder / "run")})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"vae_fingerprint": "0123"},
            r"made with vae_fingerprint 0123, but .* has [0-9a-f]{64}; prepare it",
        ),
        ({"score_definition": "flow-v1"}, r"made with score_definition flow-v1, but .* has ssim-rgb-u7-v1"),
        ({"text_fingerprint": "4567"}, r"made with text_fingerprint 4567"),
        ({"counts": {"clips": 3}}, r"has 3 clips, fewer than --total-batch 4"),
        ({"schema_version": 99}, r"has schema version 99, this code reads 1"),
    ],
)
def test_a_dataset_that_does_not_fit_the_model_is_refused_before_anything_is_written(
    train_config: train.TrainConfig, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    config = changed_dataset(train_config, tmp_path, **changes)
    with pytest.raises(ValueError, match=sentence):
        train.check(config)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_workers_cannot_share_is_refused_with_one_that_they_can() -> None:
    with pytest.raises(ValidationError, match="--micro-batch 3 x --num-workers 2; make it 6"):
        train.TrainConfig(dataset="a", output="b", micro_batch=3)


def test_preset_base_is_the_papers_run_and_a_flag_wins_over_it() -> None:
    config = train.TrainConfig(dataset="a", output="b", preset="base", num_workers=8, learning_rate=3e-4)
    assert (config.total_batch, config.prompt_drop, config.init) == (80, 0.5, "lavie:lavie_base.pt")
    assert config.learning_rate == 3e-4


def test_trained_weights_get_a_smaller_learning_rate_than_random_ones() -> None:
    rates = {
        init: train.TrainConfig(dataset="a", output="b", init=init).learning_rate for init in ("none", "builtin:tiny")
    }
    assert rates["builtin:tiny"] < rates["none"] / 10
