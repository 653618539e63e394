"""Training on real DeepSpeed workers: exact at every ZeRO stage, after every hop to another layout, and after faults.

The reference is a plain loop of PyTorch (plain.py), which neither validates nor draws samples: a run that equals it was
not changed by either.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from cinemo import CinemoPipeline, lineage
from cinemo import checkpoint as model_directory
from pipelines.core import lease, storage
from pipelines.dataset import reader
from pipelines.prepare.config import PrepareConfig
from pipelines.train import job as train
from pipelines.train.config import TrainConfig
from pipelines.train.losses import read_losses, read_rows
from pipelines.train.trainer import StopTraining
from pipelines.train.validation import TABLE, TOTAL
from tests.pipelines.conftest import rows
from tests.pipelines.prepare.plain import prepare_plain
from tests.pipelines.train import faults
from tests.pipelines.train.plain import Plain, exported, run_plain, small_config
from tests.pipelines.train.validation_reference import ValidationReference, held_out_rows, share_of

pytestmark = pytest.mark.ray
EVERY = 2  # steps between checkpoints
# (ZeRO stage, workers, last step). A worker and the tracking server die in the first. Three workers share a batch of
# four clips as two, two and none.
HOPS: list[tuple[int, int | str, int]] = [
    (0, 2, 8),
    (1, 2, 12),
    (2, 2, 16),
    (3, 2, 20),
    (3, 1, 24),
    (2, "1:3", 28),
]
SAMPLED = 3  # the hop with samples on the way
LAST = HOPS[-1][2]


@dataclass
class Reference:
    """Expected results of a run.

    validation: rows of validation.csv by their step. bad: steps with the spoiled clip, up to well after the last hop.
    shown: height of the frames of each clip on a sheet of samples.
    """

    plain: Plain
    validation: dict[int, dict[str, float]]
    spoiled_clip: str
    bad: list[int]
    shown: list[int]


@pytest.fixture
def config(several_shapes: str, tmp_path: Path) -> TrainConfig:
    """Clips of three shapes. Two of the videos are held out; one of the clips to train on is spoiled."""
    found = rows(several_shapes)
    share = share_of({row["uri"] for row in found}, 2)
    small = small_config(several_shapes, tmp_path).model_copy(update={"validation_share": share})
    changes = {
        "dataset": faults.spoil(several_shapes, tmp_path, reader.ClipReader(several_shapes, share)[0].clip_id),
        "output": str(tmp_path / "run"),
        "checkpoint_every": EVERY,
        "max_bad_steps": LAST,
        # A schedule that ends after the last hop, and all that changes the loss or the optimizer's step.
        "lr_schedule": "cosine",
        "decay_steps": 2 * LAST,
        "weight_decay": 1.0,
        "min_snr_gamma": 5.0,
        "noise_offset": 0.1,
    }
    return small.model_copy(update=changes)


@pytest.fixture
def reference(config: TrainConfig) -> Reference:
    clips = reader.ClipReader(config.dataset, config.validation_share)
    assert len(clips.groups()) == 3
    assert clips.left_out(config.total_batch) == 0
    assert len({clips.shape_index(number) for number in clips.held_out(99)}) > 1
    batches = [clips.positions(config.total_batch, config.seed, step) for step in range(2 * LAST)]
    spoiled = clips[0].clip_id
    assert spoiled not in {row["clip_id"] for row in held_out_rows(config)}
    plain = run_plain(config, LAST, keep=range(EVERY, LAST + 1, EVERY))
    bad = [step for step, batch in enumerate(batches, 1) if 0 in batch]
    assert [step for step in bad if step <= LAST] == [n for n, loss in enumerate(plain.losses, 1) if np.isnan(loss)]
    losses = ValidationReference(config).losses
    weights_at = {0: plain.start, **{step: weights for step, (weights, _) in plain.kept.items()}}
    validation = {step: {"step": step, **losses(weights)} for step, weights in weights_at.items()}
    sizes = [clips[number].latents.shape[-2:] for number in clips.held_out(3)]
    return Reference(plain, validation, spoiled, bad, [192 * height // width for height, width in sizes])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[faults.Server]:
    """A tracking server that runs."""
    server = faults.Server(tmp_path)
    server.start()
    yield server
    server.end()


@pytest.mark.long
@pytest.mark.timeout(1200)  # seven runs
def test_a_run_is_exact_after_every_hop_to_another_layout_with_a_lost_worker_a_spoiled_clip_and_a_lost_server(
    config: TrainConfig,
    reference: Reference,
    server: faults.Server,
    ray_cluster: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, summary = Path(config.output), {}
    for number, (stage, workers, steps) in enumerate(HOPS):
        hop = f"hop {number}: ZeRO {stage}, {workers} workers, to step {steps}"
        changes: dict[str, Any] = {"zero_stage": stage, "num_workers": workers, "max_steps": steps}
        if number == 0:
            summary = run_with_losses(config.model_copy(update={**changes, "tracking_uri": server.uri}), server)
            assert "not tracked in MLflow" in capfd.readouterr().err, hop
        else:
            faults.leave_stale_shards(run)
            faults.leave_a_stale_row(run)
            changed = config.model_copy(update=changes | {"sample_every": 2 * (number == SAMPLED)})
            summary = train.run(train.resolve(changed))
        check_hop(hop, run, steps, summary, reference)
        if number == SAMPLED:
            check_samples(run, [*(last for _, _, last in HOPS[:number]), steps - 2, steps], reference.shown)
            check_tracked(config, summary, steps - HOPS[number - 1][2], stage)

    assert faults.last_state(run)["world_size"] == 3
    assert reference.plain.distance(exported(summary["model"]), reference.plain.weights) > 1e-2  # it is the average
    check_export(config, summary)
    check_refusals(config)
    check_stop(config, reference)


def run_with_losses(config: TrainConfig, server: faults.Server) -> dict[str, Any]:
    """A run that loses a worker and the tracking server after its second checkpoint."""
    killed: list[int] = []

    def lose() -> None:
        server.end()
        killed.append(faults.kill_a_worker())

    state = Path(config.output) / "checkpoints" / f"step_{2 * EVERY:07d}" / "state.json"
    killer = faults.when(state.exists, lose)
    summary = train.run(train.resolve(config))
    killer.join(timeout=10)
    assert len(killed) == 1
    return summary


def check_hop(hop: str, run: Path, steps: int, summary: dict[str, Any], reference: Reference) -> None:
    """Losses, exported average, validation and bad steps are those of the plain run at this step."""
    plain, bad = reference.plain, [step for step in reference.bad if step <= steps]
    assert summary["steps"] == steps, hop
    np.testing.assert_allclose(read_losses(str(run)), plain.losses[:steps], rtol=1e-4, err_msg=hop)
    assert plain.distance(exported(summary["model"]), plain.kept[steps][1]) < 1e-3, hop
    assert summary["bad_steps"] == [{"step": step, "clips": [reference.spoiled_clip]} for step in bad], hop
    validation_rows = read_rows(str(run), TABLE)
    assert [row["step"] for row in validation_rows] == list(range(0, steps + 1, EVERY)), hop
    for row in validation_rows:
        expected = reference.validation[int(row["step"])]
        assert row.keys() == expected.keys(), hop
        np.testing.assert_allclose([row[name] for name in expected], list(expected.values()), rtol=1e-4, err_msg=hop)
    assert summary["validation_loss"] == validation_rows[-1][TOTAL], hop
    assert validation_rows[-1][TOTAL] < validation_rows[0][TOTAL], hop


def check_export(config: TrainConfig, summary: dict[str, Any]) -> None:
    """The exported directory is a whole model that animates, and says where it came from."""
    card = model_directory.read_card(summary["model"])
    assert (card.sizes, card.lengths) == ([(64, 96), (96, 64)], [4, 3])
    assert card.lineage["dataset_fingerprint"] == summary["dataset_fingerprint"]
    assert card.lineage["steps"] == LAST
    run, data, *start = lineage.trace(summary["model"]).came_from
    assert (run.name, data.name, data.note) == (summary["run_id"], config.dataset, None)
    assert data.came_from[0].name == reader.read_description(config.dataset)["input"]
    assert [node.name for node in start] == ([] if config.init == "none" else [config.init])
    assert summary["model_fingerprint"] == model_directory.fingerprint(summary["model"])
    image = np.full((64, 64, 3), 128, np.uint8)
    pipe = CinemoPipeline.from_pretrained(summary["model"])
    frames = pipe(image, "a photo", num_frames=4, height=96, width=64, num_inference_steps=2).frames
    assert frames.shape == (1, 4, 96, 64, 3)


def check_tracked(config: TrainConfig, summary: dict[str, Any], new: int, stage: int) -> None:
    """MLflow's database beside the output has the run with parameters, metrics, tags and curves of its `new` steps."""
    client = MlflowClient(f"sqlite:///{Path(config.output).parent / 'mlflow.db'}")
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["zero_stage"] == str(stage)
    assert run.data.tags["dataset_fingerprint"] == summary["dataset_fingerprint"]
    assert run.data.tags["model_fingerprint"] == summary["model_fingerprint"]
    losses = dict(enumerate(read_losses(config.output), 1))
    curves = {
        "loss": {step: loss for step, loss in losses.items() if step > len(losses) - new and np.isfinite(loss)},
        f"{TOTAL}_q1": {
            row["step"]: row[f"{TOTAL}_q1"]
            for row in read_rows(config.output, TABLE)
            if row["step"] > len(losses) - new or (row["step"] == 0 and len(losses) == new)
        },
    }
    for name, curve in curves.items():
        history = {metric.step: metric.value for metric in client.get_metric_history(summary["run_id"], name)}
        assert history == pytest.approx(curve)
        assert len(history) >= 2
    assert 0 < run.data.metrics["grad_norm"] < 10
    assert 0 < run.data.metrics["data_wait_share"] < 1
    assert 100 < run.data.metrics["memory_mib"] < 10_000
    assert run.data.metrics["bad_steps"] == len(summary["bad_steps"])
    assert [file.path for file in client.list_artifacts(summary["run_id"])] == ["images", "loss.png"]
    images = [file.path for file in client.list_artifacts(summary["run_id"], "images") if file.path.endswith(".png")]
    steps = sorted(int(step) for step in re.findall(r"samples\Wstep\W(\d+)\W", " ".join(images)))
    assert steps == [len(losses) - 2, len(losses)]


def check_samples(run: Path, steps: list[int], shown: list[int]) -> None:
    """There are sheets of these steps; the last has the true clip and the sample of each clip, `shown` pixels high."""
    names = [f"step_{step:06d}.png" for step in steps]
    assert [path.name for path in sorted((run / "samples").iterdir())] == names
    sheet = np.asarray(Image.open(run / "samples" / names[-1]), np.float32)
    assert sheet.shape == (6 + sum(2 * (22 + height + 6) for height in shown), 6 + 6 * 198, 3)
    for number, height in enumerate(shown):
        top = 28 + sum(2 * (28 + before) for before in shown[:number])
        true, sampled = (sheet[start : start + height] for start in (top, top + 28 + height))
        # Both begin with the image, and end apart: so small a model has not learned to move it.
        assert np.abs(true[:, 6:198] - sampled[:, 6:198]).mean() < 1
        assert np.abs(true[:, -198:-6] - sampled[:, -198:-6]).mean() > 5


def check_refusals(config: TrainConfig) -> None:
    """A run that is there goes on with the settings that it began with, and no others."""
    with pytest.raises(ValueError, match=r"--seed: .* was made with seed 0, this job has 1"):
        train.resolve(config.model_copy(update={"seed": 1}))
    with pytest.raises(ValueError, match=r"--validation-share: .* with validation_share 0\.\d+, this job has 0\.0"):
        train.resolve(config.model_copy(update={"validation_share": 0.0}))
    before = weights_written(config)
    with pytest.raises(StopTraining, match=rf"^--max-steps {LAST - 1}: this run has taken {LAST} steps, and earlier"):
        train.run(train.resolve(config.model_copy(update={"max_steps": LAST - 1, "zero_stage": 2})))
    assert weights_written(config) == before


def check_stop(config: TrainConfig, reference: Reference) -> None:
    """With one bad step more than allowed, the run stops at once, and what is there stays there."""
    before = weights_written(config)
    so_far = sum(step <= LAST for step in reference.bad)
    changes = {"max_steps": 2 * LAST, "max_bad_steps": so_far, "zero_stage": 2, "checkpoint_every": 2 * LAST}
    sentence = rf"step {reference.bad[so_far]} has no finite loss .* look at the clips {reference.spoiled_clip}, or"
    with pytest.raises(StopTraining, match=sentence):
        train.run(train.resolve(config.model_copy(update=changes)))
    assert before.items() <= weights_written(config).items()


def weights_written(config: TrainConfig) -> dict[str, int]:
    """When each file of weights in the checkpoints and in the model was written, by name."""
    found = faults.written(Path(config.output))
    return {name: when for name, when in found.items() if name.endswith((".pt", ".safetensors"))}


def test_low_precision_checkpointing_offload_and_own_settings_train_alike(
    mixed: str, ray_cluster: None, tmp_path: Path, tracking_uri: str
) -> None:
    own = tmp_path / "deepspeed.json"
    own.write_text('{"zero_optimization": {"stage": "auto", "reduce_bucket_size": 100000}}')
    low = {"precision": "bf16", "gradient_checkpointing": True, "max_steps": 5, "ema_decay": 0.0}
    config = small_config(mixed, tmp_path).model_copy(update={**low, "tracking_uri": tracking_uri})
    plain = run_plain(config, 5)
    for name, stage, more in (
        ("autocast", 0, {}),
        ("offload", 3, {"offload_optimizer": "cpu", "offload_params": "cpu", "deepspeed": str(own)}),
    ):
        changes = {**more, "zero_stage": stage, "output": str(tmp_path / name)}
        summary = train.run(train.resolve(config.model_copy(update=changes)))
        losses = read_losses(changes["output"])
        np.testing.assert_allclose(losses, plain.losses, rtol=2e-2)  # bf16 has eight bits
        assert not np.allclose(losses, plain.losses, rtol=1e-5)  # and is what was computed in
        weights = exported(summary["model"])
        assert all(weight.dtype == torch.float32 for weight in weights.values())
        assert plain.distance(weights, plain.weights) < 0.5  # without an average, the last weights


def test_the_tiny_preset_halves_its_loss_in_a_hundred_steps_and_says_that_no_clip_is_held_out(
    prepare_config: PrepareConfig,
    checkpoint: Path,
    ray_cluster: None,
    tmp_path: Path,
    tracking_uri: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    like = str(checkpoint)  # latents of an ordinary VAE, small beside the noise, which a new network soon tells apart
    prepared = str(tmp_path / "dataset")
    prepare_plain(prepare_config.model_copy(update={"output": prepared, "model": like}))
    changes = {"init": "none", "components": like, "total_batch": 4, "micro_batch": 2, "num_workers": 1}
    places = {"dataset": prepared, "output": str(tmp_path / "run"), "tracking_uri": tracking_uri}
    summary = train.run(train.resolve(TrainConfig(**places, **changes, validation_share=1e-6)))
    assert summary["steps"] == 100
    assert summary["loss_last_20"] < 0.5 * summary["loss_first_20"]

    assert summary["validation_loss"] is None
    assert capfd.readouterr().err.count("no clip fell into --validation-share 1e-06: there is no validation loss") == 1
    assert not (tmp_path / "run" / "validation.csv").exists()
    assert (tmp_path / "run" / "samples" / "step_000100.png").exists()


def test_a_training_whose_output_was_taken_over_exports_nothing(
    prepared: str, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 600.0)  # the driver is suspended, and its workers are not
    changes = {"output": str(tmp_path / "run"), "max_steps": 2, "num_workers": 1}
    place = tmp_path / "run" / lease.NAME
    theirs = {**lease.Lease(changes["output"]).record, "token": "theirs"}
    taker = faults.when(place.exists, lambda: storage.put_json(str(place), theirs))
    with pytest.raises(RuntimeError, match="is being written by another job"):
        train.run(train.resolve(small_config(prepared, tmp_path).model_copy(update=changes)))
    taker.join()
    assert not (tmp_path / "run" / "model").exists()
