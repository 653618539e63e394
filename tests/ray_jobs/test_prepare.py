"""ray_jobs/prepare.py: sentences for bad input, and a job whose processes are killed."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from cinemo.synthetic import write_clips
from pipelines.prepare.config import PrepareConfig
from ray_jobs import prepare
from tests.pipelines.conftest import rows
from tests.pipelines.prepare.plain import prepare_plain
from tests.ray_jobs import jobs

SMALL = {"num_frames": 4, "height": 64, "width": 64, "clips_per_video": 4, "clips_per_file": 1, "encoders": 1}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "nowhere", "--output", "out"], "nowhere does not exist; give a folder of videos"),
        (["--input", "v", "--output", "out"], "--input v: it lists no video"),
        (["--input", "list.csv", "--output", "out"], "has no column for the video; found are words"),
        (["--input", "v", "--output", "out", "--model", "v"], "/v has no U-Net (looked for unet"),
        (["--input", "v", "--output", "out", "--score-only", "--embed-text"], "--score-only stores no tensors"),
        (["--output", "out"], "--input is required"),
    ],
)
def test_bad_input_is_refused_with_one_sentence_and_writes_nothing(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "list.csv").write_text("words\nx.mp4\n")
    (tmp_path / "v").mkdir()
    if {"--model", "--score-only"} & set(arguments):
        (tmp_path / "v" / "a.mp4").touch()
    assert sentence in jobs.refuse(monkeypatch, capsys, prepare, tmp_path, *arguments)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, checkpoint: Path, moments: random.Random
) -> None:
    """SIGKILL of the driver, of the whole node and of workers, each at a random moment; then row for row the same."""
    write_clips(tmp_path / "v", 12, size=(64, 96), num_frames=60)
    (tmp_path / "v" / "broken.mp4").write_bytes((tmp_path / "v" / "captions.csv").read_bytes())
    whole = prepare_plain(
        PrepareConfig(input=str(tmp_path / "v"), output=str(tmp_path / "whole"), model=str(checkpoint), **SMALL)
    )
    arguments = ["--input", "v", "--output", "killed", "--model", str(checkpoint), "--max-reject-fraction", "0"]
    for name, value in SMALL.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    killed = tmp_path / "killed"

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in killed.glob("data/part-*")}

    def begin(more_parts: int) -> "subprocess.Popen[str]":
        """Start the job, and return at a random moment after it wrote some parts more."""
        goal = len(parts()) + more_parts
        job = jobs.start("prepare", tmp_path, *arguments)
        jobs.wait_until(job, lambda: len(parts()) >= goal)
        time.sleep(moments.random() / 20)  # parts come in bursts: a longer sleep would often see the end
        print(f"{len(parts())} of {whole['counts']['clips']} parts are there")
        return job

    jobs.kill(begin(moments.randint(1, 4)))
    assert not (killed / "dataset.json").exists()
    before = parts()

    jobs.kill_node(begin(moments.randint(1, 4)))
    assert not (killed / "dataset.json").exists()

    job = begin(0)
    assert jobs.kill_workers(job, 5, moments) >= 2
    code, summary, errors = jobs.finish(job)
    assert code == 3, errors  # done, with one reject more than allowed
    assert len(before) < whole["counts"]["clips"]
    assert summary["counts"] == whole["counts"]
    assert rows(killed) == rows(tmp_path / "whole")
    assert rows(killed, "rejects") == rows(tmp_path / "whole", "rejects")
    assert summary["fingerprint"] == whole["fingerprint"]
    assert before.items() <= parts().items()
