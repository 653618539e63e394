"""Training on real DeepSpeed workers: exact at every ZeRO stage, resumed in any layout, exported, tracked, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from cinemo import CinemoPipeline, lineage
from cinemo import checkpoint as model_directory
from pipelines import dataset, prepare, train
from tests.pipelines.plain import Plain, exported, run_plain, small_config

pytestmark = pytest.mark.ray
STEPS, MORE = 30, 36


@pytest.fixture(scope="module")
def config(
    prepare_config: prepare.PrepareConfig, summary: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> train.TrainConfig:
    return small_config(prepare_config.output, tmp_path_factory.mktemp("components"))


@pytest.fixture(scope="module")
def plain(config: train.TrainConfig) -> Plain:
    return run_plain(config, MORE)


@pytest.mark.parametrize(
    ("stage", "then"),
    [
        # (ZeRO stage, workers) of what goes on. Three workers share a batch of four clips as two, two and none.
        pytest.param(0, [(2, "1:3")], marks=pytest.mark.long),  # from a checkpoint without shards
        pytest.param(1, [(1, 1), (1, 2)], marks=pytest.mark.long),  # to fewer workers and back
        (2, [(3, 2)]),  # to sharded weights
        (3, [(1, 2)]),  # from sharded weights
    ],
)
def test_losses_and_average_equal_plain_pytorch_at_every_stage_and_after_going_on_in_another_layout(
    config: train.TrainConfig, plain: Plain, tmp_path: Path, stage: int, then: list[tuple[int, int | str]]
) -> None:
    config = config.model_copy(update={"output": str(tmp_path / "run"), "zero_stage": stage})
    said = train.run(config)
    assert said["steps"] == STEPS
    np.testing.assert_allclose(train.read_losses(config.output), plain.losses[:STEPS], rtol=1e-4)
    check_export(config, said)
    check_tracked(tmp_path, config, said)

    for count, (then_stage, workers) in enumerate(then, 1):
        leave_stale_shards(tmp_path / "run")
        steps = STEPS + (MORE - STEPS) * count // len(then)
        said = train.run(
            config.model_copy(update={"zero_stage": then_stage, "num_workers": workers, "max_steps": steps})
        )
    np.testing.assert_allclose(train.read_losses(config.output), plain.losses, rtol=1e-4)
    assert plain.distance(exported(said["model"]), plain.average) < 1e-3
    assert plain.distance(exported(said["model"]), plain.weights) > 1e-2  # the average, not the last weights
    assert last_state(tmp_path / "run")["world_size"] == (3 if workers == "1:3" else workers)
    with pytest.raises(ValueError, match=r"--seed: the run in .* has 0, this command 1"):
        train.check(config.model_copy(update={"seed": 1}))


def last_state(run: Path) -> dict[str, Any]:
    """state.json of a run's last checkpoint."""
    return json.loads(max((run / "checkpoints").glob("step_*/state.json")).read_text())


def leave_stale_shards(run: Path) -> None:
    """In a run's last checkpoint, what a worker of another layout had written when it was killed."""
    for layout in ("zero2-x3-fp32-none-none-no", "zero1-x1-fp32-none-none-no", "zero3-x2-fp32-none-none-no"):
        stale = max((run / "checkpoints").glob("step_*")) / layout
        if not stale.exists():
            stale.mkdir()
            (stale / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"half a file")


def test_low_precision_checkpointing_offload_and_own_settings_train_alike(
    config: train.TrainConfig, tmp_path: Path
) -> None:
    own = tmp_path / "deepspeed.json"
    own.write_text('{"zero_optimization": {"stage": "auto", "reduce_bucket_size": 100000}}')
    low = {"precision": "bf16", "gradient_checkpointing": True, "max_steps": 10, "ema_decay": 0.0}
    plain = run_plain(config, 10)
    for name, stage, more in (
        ("autocast", 0, {}),
        ("offload", 3, {"offload_optimizer": "cpu", "offload_params": "cpu", "deepspeed": str(own)}),
    ):
        changes = {**low, **more, "zero_stage": stage, "output": str(tmp_path / name)}
        said = train.run(config.model_copy(update=changes))
        losses = train.read_losses(changes["output"])
        np.testing.assert_allclose(losses, plain.losses, rtol=2e-2)  # bf16 has eight bits
        assert not np.allclose(losses, plain.losses, rtol=1e-5)  # and is what was computed in
        weights = exported(said["model"])
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        assert plain.distance(weights, plain.weights) < 0.5  # without an average, the last weights


def test_the_tiny_preset_halves_its_loss_in_a_hundred_steps(
    prepare_config: prepare.PrepareConfig, summary: dict[str, Any], tmp_path: Path
) -> None:
    like = "builtin:velocity"  # latents of the usual size, in which noise can be told from a picture
    prepared = str(tmp_path / "dataset")
    prepare.run(prepare_config.model_copy(update={"output": prepared, "model": like}))
    config = train.TrainConfig(
        dataset=prepared, output=str(tmp_path / "run"), init="none", components=like, total_batch=4, micro_batch=2
    )
    said = train.run(config)
    assert said["steps"] == 100
    assert said["loss_last_20"] < 0.5 * said["loss_first_20"]


def check_export(config: train.TrainConfig, said: dict[str, Any]) -> None:
    """The exported directory is a whole model that animates, and says where it came from."""
    card = model_directory.read_card(said["model"])
    assert (card.sizes, card.lengths) == ([(64, 64)], [4])
    assert card.lineage["dataset_fingerprint"] == said["dataset_fingerprint"]
    assert card.lineage["steps"] == STEPS
    run, data, *start = lineage.trace(said["model"]).came_from
    assert (run.name, data.name, data.note) == (said["run_id"], config.dataset, None)
    assert data.came_from[0].name == dataset.read_description(config.dataset)["input"]
    assert [node.name for node in start] == ([] if config.init == "none" else [config.init])
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
    assert 0 < run.data.metrics["grad_norm"] < 10
    assert 0 < run.data.metrics["data_wait_share"] < 1
    assert 100 < run.data.metrics["memory_mib"] < 10_000
    assert run.data.metrics["bad_steps"] == 0
    assert [file.path for file in client.list_artifacts(said["run_id"])] == ["images", "loss.png"]
