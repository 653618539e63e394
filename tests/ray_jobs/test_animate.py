"""ray_jobs/animate.py as a command: exit codes, sentences, and processes that are killed."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.pipelines.animation.conftest import write_catalog, write_photo
from tests.ray_jobs import jobs

QUICK = ["--size", "64x64", "--num-frames", "4", "--num-inference-steps", "2", "--guidance-scale", "1"]


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
def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    for name in ("empty", "photos", "prepared"):
        (tmp_path / name).mkdir()
    (tmp_path / "prepared" / "settings.json").write_text('{"sampling_version": 2}')
    write_photo(tmp_path / "photos" / "0.png", 0)
    before = sorted(tmp_path.rglob("*"))
    code, summary, errors = jobs.finish(jobs.start("animate", tmp_path, "--output", "out", *arguments))
    assert (code, summary) == (2, {})
    assert sentence in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before


def results(output: Path) -> dict[int, tuple[str, str]]:
    rows = pq.read_table(output / "results").to_pylist()
    assert len({row["row"] for row in rows}) == len(rows)
    return {row["row"]: (row["id"], row["prompt"]) for row in rows}


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_job_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path, checkpoint: Path) -> None:
    """SIGKILL of the driver, of the whole node and of workers, each at a random moment; then one video a row."""
    lines: list[dict[str, Any]] = []
    for number in range(60):
        write_photo(tmp_path / f"{number}.png", number)
        lines.append({"image": f"{number}.png", "prompt": f"prompt {number}"})
    (tmp_path / "7.png").write_text("no image")
    write_catalog(tmp_path / "catalog.jsonl", [*lines, lines[0]])
    arguments = ["--catalog", "catalog.jsonl", "--model", str(checkpoint), "--batch", "2", *QUICK]
    seed = random.SystemRandom().randrange(10**6)
    print(f"random moments of seed {seed}")
    moments = random.Random(seed)
    killed = tmp_path / "killed"

    def videos() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in killed.glob("videos/*.json")}

    def begin(more: int) -> Any:
        goal = len(videos()) + more
        job = jobs.start("animate", tmp_path, *arguments, "--output", "killed")
        jobs.wait_until(job, lambda: len(videos()) >= goal)
        time.sleep(moments.random() / 5)
        return job

    jobs.kill(begin(moments.randint(1, 8)))
    assert not (killed / "summary.json").exists()
    before = videos()
    jobs.kill_node(begin(moments.randint(1, 8)))
    assert not (killed / "summary.json").exists()

    job = begin(1)
    deaths = 0
    for _ in range(3):
        deaths += jobs.kill_a_worker(job, moments)
        time.sleep(2 * moments.random())
    assert deaths >= 2
    code, summary, errors = jobs.finish(job)
    assert code == 0, errors

    again, whole, errors = jobs.finish(
        jobs.start("animate", tmp_path, *arguments, "--output", "whole", "--max-reject-fraction", "0")
    )
    assert again == 3, errors  # done, with one reject more than allowed
    assert summary["counts"] == whole["counts"]
    assert summary["counts"] == {
        "rows": 61, "listed": 60, "videos": 59, "rejected": 1, "rejects": {"no_image": 1}
    }  # fmt: skip
    assert results(killed) == results(tmp_path / "whole")
    assert before.items() <= videos().items()
    assert len(videos()) == 59
    for name in videos():
        told, expected = (
            json.loads((tmp_path / folder / "videos" / name).read_text()) for folder in ("killed", "whole")
        )
        assert told["motion_score"] == pytest.approx(expected["motion_score"], abs=1e-3)
    assert not list((killed / "latents").iterdir())

    began = time.monotonic()
    code, rerun, errors = jobs.finish(jobs.start("animate", tmp_path, *arguments, "--output", "killed"))
    assert (code, rerun["new_videos"], rerun["counts"]) == (0, 0, summary["counts"]), errors
    print(f"a rerun took {time.monotonic() - began:.1f} s")
