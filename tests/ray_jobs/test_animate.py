"""ray_jobs/animate.py: sentences for bad input, and a job whose processes are killed."""

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.animate.config import AnimateConfig
from ray_jobs import animate
from tests.pipelines.animate.conftest import QUICK, animate_plain, write_catalog, write_photo
from tests.ray_jobs import jobs

ROWS = 36  # of different images; one more is like the first


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--catalog", "nowhere"], "nowhere does not exist; give a folder of images"),
        (["--catalog", "photos"], "--catalog photos: it has no prompts; give --prompt TEXT"),
        (["--catalog", "photos", "--prompt", "x", "--model", "empty"], "has no U-Net (looked for unet"),
        (["--catalog", "photos", "--prompt", "x", "--min-replicas", "3", "--max-replicas", "2"], "is above --max-repl"),
        (["--catalog", "photos", "--prompt", "x", "--output", "photos/out"], "lies in the folder that --catalog names"),
        (["--catalog", "photos", "--prompt", "x", "--output", "prepared"], "was made by another job"),
        ([], "--catalog is required"),
    ],
)
def test_bad_input_is_refused_with_one_sentence_and_writes_nothing(
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("empty", "photos", "prepared"):
        (tmp_path / name).mkdir()
    (tmp_path / "prepared" / "settings.json").write_text('{"sampling_version": 2}')
    write_photo(tmp_path / "photos" / "0.png", 0)
    assert sentence in jobs.refuse(monkeypatch, capsys, animate, tmp_path, "--output", "out", *arguments)


def results(output: Path) -> dict[int, tuple[str, str]]:
    rows = pq.read_table(output / "results").to_pylist()
    assert len({row["row"] for row in rows}) == len(rows)
    return {row["row"]: (row["id"], row["prompt"]) for row in rows}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(
    tmp_path: Path, checkpoint: Path, moments: random.Random
) -> None:
    """SIGKILL of the driver, of the whole node and of workers, each at a random moment; then one video a row."""
    lines: list[dict[str, Any]] = []
    for number in range(ROWS):
        write_photo(tmp_path / f"{number}.png", number)
        lines.append({"image": f"{number}.png", "prompt": f"prompt {number}"})
    (tmp_path / "7.png").write_text("no image")
    catalog = write_catalog(tmp_path / "catalog.jsonl", [*lines, lines[0]])
    whole = animate_plain(
        AnimateConfig(catalog=catalog, output=str(tmp_path / "whole"), model=str(checkpoint), batch=2, **QUICK)
    )
    arguments = ["--catalog", "catalog.jsonl", "--output", "killed", "--model", str(checkpoint), "--batch", "2"]
    arguments += ["--max-reject-fraction", "0"]
    for name, value in QUICK.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    killed = tmp_path / "killed"

    def videos() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in killed.glob("videos/*.json")}

    def begin(more: int) -> "subprocess.Popen[str]":
        """Start the job, and return at a random moment after it wrote some videos more."""
        goal = len(videos()) + more
        job = jobs.start("animate", tmp_path, *arguments)
        jobs.wait_until(job, lambda: len(videos()) >= goal)
        time.sleep(moments.random() / 5)
        print(f"{len(videos())} of {ROWS - 1} videos are there")
        return job

    jobs.kill(begin(moments.randint(1, 4)))
    assert not (killed / "summary.json").exists()
    before = videos()

    jobs.kill_node(begin(moments.randint(1, 4)))
    assert not (killed / "summary.json").exists()

    job = begin(1)
    assert jobs.kill_workers(job, 3, moments) >= 2
    code, summary, errors = jobs.finish(job)
    assert code == 3, errors  # done, with one reject more than allowed
    assert summary["counts"] == whole["counts"]
    assert summary["counts"] == {
        "rows": ROWS + 1, "listed": ROWS, "videos": ROWS - 1, "rejected": 1, "rejects": {"no_image": 1}
    }  # fmt: skip
    assert results(killed) == results(tmp_path / "whole")
    assert before.items() <= videos().items()
    assert len(videos()) == ROWS - 1
    for name in videos():
        told, expected = (
            json.loads((tmp_path / folder / "videos" / name).read_text()) for folder in ("killed", "whole")
        )
        assert told["motion_score"] == pytest.approx(expected["motion_score"], abs=1e-3)
    assert not list((killed / "latents").iterdir())
