"""ray_jobs/prepare.py as a command: exit codes, sentences, and a driver that is killed."""

import random
import subprocess
import time
from pathlib import Path

import pytest

from cinemo.synthetic import write_clips
from tests.pipelines.conftest import rows
from tests.ray_jobs import jobs

SMALL = ["--num-frames", "4", "--height", "64", "--width", "64", "--clips-per-video", "4", "--clips-per-file", "1"]
SMALL += ["--encoders", "1"]


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
def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "list.csv").write_text("words\nx.mp4\n")
    (tmp_path / "v").mkdir()
    if {"--model", "--score-only"} & set(arguments):
        (tmp_path / "v" / "a.mp4").touch()
    code, summary, errors = jobs.finish(jobs.start("prepare", tmp_path, *arguments))
    assert (code, summary) == (2, {})
    assert sentence in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path, checkpoint: Path) -> None:
    """SIGKILL of the driver, of the whole node and of workers, each at a random moment; then row for row the same."""
    write_clips(tmp_path / "v", 24, size=(64, 96), num_frames=60)
    (tmp_path / "v" / "broken.mp4").write_bytes((tmp_path / "v" / "captions.csv").read_bytes())
    arguments = ["--input", "v", "--model", str(checkpoint), *SMALL]
    seed = random.SystemRandom().randrange(10**6)
    print(f"random moments of seed {seed}")
    moments = random.Random(seed)
    killed = tmp_path / "killed"

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in killed.glob("data/part-*")}

    def begin(more_parts: int) -> "subprocess.Popen[str]":
        """Start the job, and return at a random moment after it wrote some parts more."""
        goal = len(parts()) + more_parts
        job = jobs.start("prepare", tmp_path, *arguments, "--output", "killed")
        jobs.wait_until(job, lambda: len(parts()) >= goal)
        time.sleep(moments.random() / 20)  # parts come in bursts: a longer sleep would often see the end
        return job

    job = begin(moments.randint(1, 8))
    jobs.kill(job)
    assert not (killed / "dataset.json").exists()
    before = parts()

    job = begin(moments.randint(1, 8))
    jobs.kill_node(job)
    assert not (killed / "dataset.json").exists()

    job = begin(0)
    deaths = 0
    for _ in range(5):
        deaths += jobs.kill_a_worker(job, moments)
        time.sleep(2 * moments.random())
    assert deaths >= 2
    code, summary, errors = jobs.finish(job)
    assert code == 0, errors

    again, whole, errors = jobs.finish(
        jobs.start("prepare", tmp_path, *arguments, "--output", "whole", "--max-reject-fraction", "0")
    )
    assert again == 3, errors  # done, with one reject more than allowed
    assert len(before) < whole["counts"]["clips"]
    assert rows(killed) == rows(tmp_path / "whole")
    assert rows(killed, "rejects") == rows(tmp_path / "whole", "rejects")
    assert summary["fingerprint"] == whole["fingerprint"]
    assert before.items() <= parts().items()
