"""ray_jobs/train.py as a command: refusals, and a run that goes on after a disk was full."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cinemo.checkpoint import load_unet
from cinemo.synthetic import write_clips
from pipelines.prepare.config import PrepareConfig
from pipelines.train import job as train
from pipelines.train.config import TrainConfig
from ray_jobs import common
from ray_jobs import train as job
from tests.pipelines.prepare.plain import prepare_plain
from tests.ray_jobs import jobs

NOWHERE = ["--dataset", "nowhere", "--output", "out"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "/nowhere holds no dataset.json"),
        (["--zero-stage", "4"], "--zero-stage 4: input should be less than or equal to 3"),
        (["--preset", "huge"], "--preset"),
    ],
)
def test_bad_input_is_refused_with_one_sentence_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", *NOWHERE, *more])
    assert common.main(TrainConfig, train.resolve, train.run, job.needs_cpus) == common.BAD_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_exits_2_for_bad_input_and_writes_nothing(tmp_path: Path) -> None:
    code, summary, errors = jobs.finish(jobs.start("train", tmp_path, *NOWHERE))
    assert (code, summary) == (2, {})
    assert "/nowhere holds no dataset.json" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> str:
    """A dataset of six videos."""
    folder = tmp_path_factory.mktemp("prepared")
    write_clips(folder / "v", 6, size=(64, 96), num_frames=60)
    sampling = {"num_frames": 4, "height": 64, "width": 64, "clips_per_video": 2}
    places = {"input": str(folder / "v"), "output": str(folder / "ds"), "model": str(checkpoint)}
    prepare_plain(PrepareConfig(**places, **sampling))
    return str(folder / "ds")


@pytest.mark.long
@pytest.mark.ray
def test_a_full_disk_ends_the_run_with_a_sentence_and_once_there_is_room_it_goes_on(
    tmp_path: Path, checkpoint: Path, prepared: str
) -> None:
    """On a file system of its own, which holds one checkpoint and a half until it is made larger."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    weights = sum(weight.numel() for weight in load_unet(checkpoint).parameters())
    (tmp_path / "run").mkdir()
    arguments = ["--dataset", prepared, "--output", "run", "--init", "none", "--components", str(checkpoint)]
    arguments += ["--num-workers", "1", "--max-steps", "4", "--checkpoint-every", "2", "--max-failures", "0"]
    command = shlex.join([sys.executable, str(jobs.ROOT / "ray_jobs" / "train.py"), *arguments])
    small = 30 * weights  # bytes: a checkpoint has the weights, the optimizer's own, two moments and the average
    script = f"""
        mount -t tmpfs -o size={small} tmpfs run
        {command} 2> first
        echo $? > code
        ls run/checkpoints > kept
        mount -o remount,size={10 * small} run
        exec {command}
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "code").read_text() == "1\n"
    last_line = (tmp_path / "first").read_text().splitlines()[-1]
    assert "the checkpoint of step 4 cannot be written" in last_line
    assert "make room, and give the same command again" in last_line
    assert "step_0000002" in (tmp_path / "kept").read_text().split()
    assert done.returncode == 0, done.stderr
    assert " 3/4 steps" in done.stderr or " 4/4 steps" in done.stderr
    assert " 1/4 steps" not in done.stderr
    assert json.loads(done.stdout)["steps"] == 4
