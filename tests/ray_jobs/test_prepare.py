"""ray_jobs/prepare.py as a command: exit codes, sentences, and a driver that is killed."""

from pathlib import Path

import pytest

from cinemo.synthetic import write_clips
from tests.pipelines.conftest import rows
from tests.ray_jobs import jobs

SMALL = ["--num-frames", "4", "--height", "64", "--width", "64", "--clips-per-video", "4", "--clips-per-file", "1"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "nowhere", "--output", "out"], "--input nowhere does not exist"),
        (["--input", ".", "--output", "out"], "--input . lists no video"),
        (["--input", "list.csv", "--output", "out"], "found the columns path, needed are contentUrl, name"),
        (["--input", "v", "--output", "out", "--model", "v"], "model v has no U-Net"),
        (["--output", "out"], "--input is required"),
    ],
)
def test_bad_input_exits_2_with_one_sentence_and_writes_nothing(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "list.csv").write_text("path\nx.mp4\n")
    (tmp_path / "v").mkdir()
    if "v" in arguments:
        (tmp_path / "v" / "a.mp4").touch()
    code, summary, errors = jobs.finish(jobs.start("prepare", tmp_path, *arguments))
    assert (code, summary) == (2, {})
    assert sentence in errors
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_a_killed_job_is_finished_by_the_same_command_with_nothing_twice_and_nothing_lost(
    tmp_path: Path, checkpoint: Path
) -> None:
    write_clips(tmp_path / "v", 6, size=(64, 96), num_frames=60)
    (tmp_path / "v" / "broken.mp4").write_bytes((tmp_path / "v" / "captions.csv").read_bytes())
    arguments = ["--input", "v", "--model", str(checkpoint), *SMALL]

    killed = tmp_path / "killed"
    jobs.kill_when(
        jobs.start("prepare", tmp_path, *arguments, "--output", "killed"), lambda: list(killed.glob("data/*"))
    )
    before = {path.name: path.stat().st_mtime_ns for path in killed.glob("data/part-*")}
    assert not (killed / "dataset.json").exists()
    code, summary, errors = jobs.finish(jobs.start("prepare", tmp_path, *arguments, "--output", "killed"))
    assert code == 0, errors

    again, whole, errors = jobs.finish(
        jobs.start("prepare", tmp_path, *arguments, "--output", "whole", "--max-reject-fraction", "0")
    )
    assert again == 3, errors  # done, with one reject more than allowed
    assert len(before) < whole["counts"]["clips"]
    assert rows(killed) == rows(tmp_path / "whole")
    assert rows(killed, "rejects") == rows(tmp_path / "whole", "rejects")
    assert summary["fingerprint"] == whole["fingerprint"]
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in killed.glob("data/part-*")}.items()
