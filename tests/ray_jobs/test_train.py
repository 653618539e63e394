"""ray_jobs/train.py as a command: refusals, and a run that goes on after its driver was killed."""

from pathlib import Path

import numpy as np
import pytest

from cinemo.synthetic import write_clips
from pipelines import train
from tests.pipelines.plain import exported, run_plain
from tests.ray_jobs import jobs

SMALL = ["--num-frames", "4", "--height", "64", "--width", "64", "--clips-per-video", "2"]


def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    arguments = ["--dataset", "nowhere", "--output", "out"]
    for more, sentence in [
        ([], "--dataset nowhere holds no dataset.json"),
        (["--zero-stage", "4"], "--zero-stage 4: input should be less than or equal to 3"),
        (["--preset", "huge"], "--preset"),
    ]:
        code, summary, errors = jobs.finish(jobs.start("train", tmp_path, *arguments, *more))
        assert (code, summary) == (2, {})
        assert sentence in errors
        assert errors.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_a_killed_run_goes_on_from_its_checkpoint_with_the_losses_of_an_uninterrupted_one(
    tmp_path: Path, checkpoint: Path
) -> None:
    write_clips(tmp_path / "v", 6, size=(64, 96), num_frames=60)
    prepared = ["--input", "v", "--output", "ds", "--model", str(checkpoint), *SMALL]
    code, _, errors = jobs.finish(jobs.start("prepare", tmp_path, *prepared))
    assert code == 0, errors
    given = {"dataset": str(tmp_path / "ds"), "init": "none", "components": str(checkpoint), "micro_batch": "2"}
    given["learning_rate"] = "1e-4"  # gentle enough for 15 steps to agree to rounding
    flags = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    arguments = [*flags, "--output", "run", "--zero-stage", "2", "--max-steps", "15", "--checkpoint-every", "3"]

    saved = tmp_path / "run" / "checkpoints"
    jobs.kill_when(jobs.start("train", tmp_path, *arguments), lambda: list(saved.glob("step_0000006/state/*")))
    assert not (tmp_path / "run" / "model").exists()
    code, summary, errors = jobs.finish(jobs.start("train", tmp_path, *arguments))
    assert code == 0, errors
    assert " 1/15 steps" not in errors  # it did not begin anew
    assert summary["steps"] == 15
    plain = run_plain(train.TrainConfig(**given, output="unused"), 15)
    np.testing.assert_allclose(train.read_losses(str(tmp_path / "run")), plain.losses, rtol=1e-4)
    assert plain.distance(exported(summary["model"]), plain.average) < 1e-3
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mlflow.db").exists()
    assert (Path(summary["model"]) / "cinemo.json").exists()
