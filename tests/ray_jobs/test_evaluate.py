"""ray_jobs/evaluate.py as a command: sentences for bad input, and a driver that is killed."""

import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.ray_jobs import jobs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "synthetic:0"], "--dataset synthetic:0: it is no number of clips"),
        (["--dataset", "ucf101:."], "it is not UCF-101 as it is published"),
        (["--dataset", "synthetic:2", "--metrics", "fun"], "fun is unknown; use fvd, fid"),
        (["--dataset", "synthetic:2", "--i3d", "none.pt"], "none.pt does not exist; pass a TorchScript file"),
        (["--dataset", "synthetic:2", "--ablate", "init=dst"], "dst is no way to start"),
        (["--dataset", "synthetic:2", "--num-frames", "8"], "num_frames 8 was not trained by this model; it takes 16"),
        ([], "--dataset is required"),
    ],
)
def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    code, summary, errors = jobs.finish(jobs.start("evaluate", tmp_path, "--output", "out", *arguments))
    assert (code, summary) == (2, {})
    assert sentence in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.ray
def test_a_job_that_is_killed_is_finished_by_the_same_command(tmp_path: Path, checkpoint: Path) -> None:
    arguments = ["--dataset", "synthetic:12", "--model", str(checkpoint), "--height", "64", "--width", "64"]
    arguments += ["--num-frames", "4", "--num-inference-steps", "2", "--workers", "1", "--metrics", "motion,fidelity"]

    def start(output: str) -> "subprocess.Popen[str]":
        return jobs.start("evaluate", tmp_path, *arguments, "--output", output)

    def measured(output: str) -> list[dict[str, object]]:
        rows = pq.read_table(tmp_path / output / "rows").to_pylist()
        return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: str(row["id"]))

    job = start("killed")
    jobs.kill_when(job, lambda: len(list((tmp_path / "killed").glob("videos/checkpoint*/*.mp4"))) >= 2)
    assert not (tmp_path / "killed" / "report.md").exists()
    code, summary, errors = jobs.finish(start("killed"))
    assert code == 0, errors
    assert summary["new_rows"] < 24  # the real rows of the first try were kept
    code, _, errors = jobs.finish(start("whole"))
    assert code == 0, errors
    assert measured("killed") == measured("whole")
    assert (tmp_path / "killed" / "report.md").read_bytes() == (tmp_path / "whole" / "report.md").read_bytes()
