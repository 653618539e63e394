"""Validation and samples while a run trains: right at every ZeRO stage, the same in every layout, without effect."""

import functools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image

from cinemo import checkpoint
from cinemo.motion import UNIFORM_MOTION
from cinemo.residual import filled_channels, training_loss
from pipelines import dataset, extract, prepare, records, train
from pipelines.training import data
from pipelines.training.batch import Inputs, named_generator, text_features
from pipelines.training.stream import StreamReader
from pipelines.training.validation import BY_BUCKET, BY_FIFTH, TOTAL, draw, read_rows, validate
from tests.pipelines.conftest import SMALL, rows
from tests.pipelines.plain import exported, run_plain, small_config

pytestmark = pytest.mark.ray
STEPS = 6


def share_of(uris: set[str], videos: int) -> float:
    """A share that holds out so many of the videos, whatever their paths hash to."""
    hashes = records.hash64(sorted(uris))
    shares = (float(share) for share in np.linspace(0, 1, 10_001)[:-1])
    return next(share for share in shares if dataset.is_held_out(hashes, share).sum() == videos)


@pytest.fixture(scope="module")
def config(
    prepare_config: prepare.PrepareConfig, summary: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> train.TrainConfig:
    """Two of the videos are held out; the last weights are what is exported."""
    share = share_of({row["uri"] for row in rows(prepare_config.output)}, 2)
    changes = {"validation_share": share, "ema_decay": 0.0, "max_steps": STEPS}
    return small_config(prepare_config.output, tmp_path_factory.mktemp("components")).model_copy(update=changes)


def held_out_rows(config: train.TrainConfig) -> list[dict[str, Any]]:
    found = rows(config.dataset)
    held_out = dataset.is_held_out(records.hash64(row["uri"] for row in found), config.validation_share)
    return [row for row, held in zip(found, held_out, strict=True) if held]


def expected(config: train.TrainConfig, model: str) -> dict[str, float]:
    """What validation should say of an exported model: one clip and one timestep at a time."""
    unet, schedule = checkpoint.load_unet(model), checkpoint.load_scheduler(model)
    embed = text_features(Path(model), torch.device("cpu"))
    losses: dict[str, list[float]] = {}
    for row in held_out_rows(config):
        latents = torch.tensor(np.array(row["latents"], np.float32).reshape(1, 4, -1, 8, 8)).transpose(1, 2)
        for fifth in range(5):
            generator = named_generator(f"validation\n{fifth}\n{row['clip_id']}")
            timestep = torch.randint(200 * fifth, 200 * fifth + 200, (), generator=generator)[None]
            noise = torch.randn(latents[0, :, 1:].shape, generator=generator)[None]
            text, bucket = embed(row["caption"])[None], torch.tensor([row["bucket"]])
            with torch.no_grad():
                batch = (latents, text, bucket, timestep, noise, schedule.alphas_cumprod)
                loss = training_loss(unet, *batch, channel_weights=filled_channels(latents)).item()
            for name in (TOTAL, BY_FIFTH[fifth], BY_BUCKET[row["bucket"]]):
                losses.setdefault(name, []).append(loss)
    assert len({len(losses[name]) for name in BY_FIFTH}) == 1
    return {name: float(np.mean(values)) for name, values in losses.items()}


def same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[name] for name in theirs], list(theirs.values()), rtol=1e-4)


def test_means_are_taken_by_timestep_and_by_motion_and_leave_out_clips_that_are_no_numbers() -> None:
    def clip(bucket: int, value: float) -> dataset.Clip:
        return dataset.Clip(f"{bucket}", "", bucket, np.full((2, 1, 1, 1), value, np.float32), None)

    def loss_of(inputs: Inputs) -> torch.Tensor:
        """The bucket, and a tenth for every fifth of the timesteps that are done."""
        latents, _, buckets, timesteps, _ = inputs
        return buckets + timesteps // 200 / 10 + 0 * latents.flatten(1).sum(1)

    draws = functools.partial(draw, embed=lambda caption: torch.zeros(1, 1), motion=UNIFORM_MOTION, timesteps=1000)
    clips = [clip(3, 1.0), clip(7, 1.0), clip(9, math.nan), clip(7, 2.0)]
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        found = [validate(loss_of, draws, clips, [0, 1, 2, 3], micro, torch.device("cpu")) for micro in (1, 3, 99)]
    finally:
        torch.distributed.destroy_process_group()
    mean = (3 + 7 + 7) / 3
    by_fifth = {f"validation_loss_q{fifth}": mean + (fifth - 1) / 10 for fifth in range(1, 6)}
    by_bucket = {"validation_loss_bucket_03": 3.2, "validation_loss_bucket_07": 7.2}
    for means in found:
        assert means == pytest.approx({"validation_loss": mean + 0.2, **by_fifth, **by_bucket})


@pytest.mark.long
def test_losses_on_held_out_clips_are_right_in_every_layout_and_change_nothing(
    config: train.TrainConfig, tmp_path: Path
) -> None:
    # At every step and with samples, or not until the end: the very same training.
    judged = {"validate_every": 1, "sample_every": 4, "zero_stage": 3, "output": str(tmp_path / "judged")}
    said = train.run(config.model_copy(update=judged))
    silent = {"validate_every": 100, "zero_stage": 3, "output": str(tmp_path / "silent")}
    ours, theirs = exported(said["model"]), exported(train.run(config.model_copy(update=silent))["model"])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = train.read_losses(judged["output"])
    assert losses == train.read_losses(silent["output"])
    np.testing.assert_allclose(losses, run_plain(config, STEPS).losses, rtol=1e-4)

    kept = read_rows(judged["output"])
    assert [row["step"] for row in kept] == list(range(1, STEPS + 1))
    assert [row["step"] for row in read_rows(silent["output"])] == [STEPS]
    same(kept[-1], {"step": STEPS, **expected(config, said["model"])})
    assert said["validation_loss"] == kept[-1][TOTAL]
    assert kept[-1][TOTAL] < kept[0][TOTAL]
    check_samples(tmp_path / "judged", said["run_id"])

    # Other stages and numbers of workers, one after the other; what a killed run left behind its checkpoint is cut.
    output = str(tmp_path / "layouts")
    for stage, workers, steps in ((0, 1, 2), (1, 2, 4), (2, 3, 6)):
        changes = {"zero_stage": stage, "num_workers": workers, "max_steps": steps, "output": output}
        train.run(config.model_copy(update=changes))
        with open(f"{output}/validation.csv", "a") as file:
            file.write(f"99,{'1.0,' * 25}1.0\n")
    found = read_rows(output)
    assert [row["step"] for row in found] == [2, 4, 6, 99]
    for row in found[:-1]:
        same(row, kept[int(row["step"]) - 1])
    with pytest.raises(ValueError, match=r"--validation-share: the run in .* has 0\.\d+, this command 0\.0"):
        train.check(config.model_copy(update={"output": output, "validation_share": 0.0}))


def check_samples(run: Path, run_id: str) -> None:
    """Sheets at step 4 and at the end, and in MLflow beside the losses: for each clip the true one, then the sample."""
    assert [path.name for path in sorted((run / "samples").iterdir())] == ["step_000004.png", "step_000006.png"]
    sheet = np.asarray(Image.open(run / "samples" / "step_000006.png"), np.float32)
    assert sheet.shape == (6 + 6 * (22 + 192 + 6), 6 + 6 * 198, 3)
    for top in range(28, sheet.shape[0], 440):
        true, sampled = (sheet[start : start + 192] for start in (top, top + 220))
        # Both begin with the image, and end apart: so small a model has not learned to move it.
        assert np.abs(true[:, 6:198] - sampled[:, 6:198]).mean() < 1
        assert np.abs(true[:, -198:-6] - sampled[:, -198:-6]).mean() > 5
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    history = client.get_metric_history(run_id, f"{TOTAL}_q1")
    assert {metric.step: metric.value for metric in history} == {
        row["step"]: row[f"{TOTAL}_q1"] for row in read_rows(str(run))
    }
    images = [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert sorted(re.findall(r"samples\Wstep\W(\d+)\W", " ".join(images))) == ["4", "6"]


def test_a_run_without_a_clip_held_out_says_so_and_one_with_too_few_to_train_on_is_refused(
    config: train.TrainConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"validation_share": 1e-6, "max_steps": 1, "output": str(tmp_path / "run")}
    said = train.run(config.model_copy(update=changes))
    assert said["validation_loss"] is None
    assert capfd.readouterr().err.count("no clip fell into --validation-share 1e-06: there is no validation loss") == 1
    assert not (tmp_path / "run" / "validation.csv").exists()
    assert (tmp_path / "run" / "samples" / "step_000001.png").exists()

    share = share_of({row["uri"] for row in rows(config.dataset)}, 6)
    left = len(rows(config.dataset)) - len(held_out_rows(config.model_copy(update={"validation_share": share})))
    changes = {"validation_share": share, "total_batch": left + 1, "output": str(tmp_path / "another")}
    with pytest.raises(ValueError, match=rf"--validation-share {share} leaves {left} to train on, fewer"):
        train.check(config.model_copy(update=changes))
    train.check(config.model_copy(update={**changes, "total_batch": left}))


def test_a_stream_makes_no_training_clips_of_held_out_videos_and_judges_by_them(
    config: train.TrainConfig, prepare_config: prepare.PrepareConfig, videos: Path, tmp_path: Path
) -> None:
    sampling = {**SMALL, "clips_per_video": prepare_config.clips_per_video}
    stream = config.model_copy(update={"dataset": str(videos), "stream": extract.ExtractConfig(**sampling)})
    reader = StreamReader(data.start(stream, str(tmp_path)))
    reader.begin(0, None)
    held_out = {row["clip_id"] for row in held_out_rows(config)}
    numbers = reader.held_out(99)
    assert {reader[number].clip_id for number in numbers} == held_out
    assert reader.held_out(2) == numbers[:2]
    trained_on = {row["clip_id"] for row in rows(config.dataset)} - held_out
    assert {reader[number].clip_id for number in range(len(trained_on))} == trained_on
