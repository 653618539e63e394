"""ray_jobs/evaluate.py: sentences for bad input, and a driver that is killed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.evaluate.config import EvaluateConfig
from ray_jobs import evaluate
from tests.pipelines.evaluate.plain import evaluate_plain
from tests.ray_jobs import jobs

SMALL = {"height": 64, "width": 64, "num_frames": 4, "num_inference_steps": 2, "workers": 1}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--dataset", "synthetic:0"], "--dataset synthetic:0: it has no number of clips"),
        (["--dataset", "ucf101:."], "it is not UCF-101 as it is published"),
        (["--dataset", "synthetic:2", "--metrics", "fun"], "fun is unknown; use fvd, fid"),
        (["--dataset", "synthetic:2", "--i3d", "none.pt"], "none.pt does not exist; pass a TorchScript file"),
        (["--dataset", "synthetic:2", "--ablate", "init=dst"], "init dst is unknown"),
        (["--dataset", "synthetic:2", "--num-frames", "8"], "num_frames 8 was not trained by this model; it takes 16"),
        ([], "--dataset is required"),
    ],
)
def test_bad_input_is_refused_with_one_sentence_and_writes_nothing(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sentence in jobs.refuse(monkeypatch, capsys, evaluate, tmp_path, "--output", "out", *arguments)


@pytest.mark.long
@pytest.mark.ray
def test_a_job_that_is_killed_is_finished_by_the_same_command(tmp_path: Path, checkpoint: Path) -> None:
    given = {"dataset": "synthetic:12", "model": str(checkpoint), "metrics": "motion,fidelity", **SMALL}
    evaluate_plain(EvaluateConfig(output=str(tmp_path / "whole"), **given))
    arguments = ["--output", "killed"]
    for name, value in given.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]

    def measured(output: str) -> list[dict[str, object]]:
        rows = pq.read_table(tmp_path / output / "rows").to_pylist()
        return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: str(row["id"]))

    job = jobs.start("evaluate", tmp_path, *arguments)
    jobs.kill_when(job, lambda: len(list((tmp_path / "killed").glob("videos/checkpoint*/*.mp4"))) >= 2)
    assert not (tmp_path / "killed" / "report.md").exists()
    code, summary, errors = jobs.finish(jobs.start("evaluate", tmp_path, *arguments))
    assert code == 0, errors
    assert summary["new_rows"] < 24  # the real rows of the first try were kept
    assert measured("killed") == measured("whole")
    assert (tmp_path / "killed" / "report.md").read_bytes() == (tmp_path / "whole" / "report.md").read_bytes()
