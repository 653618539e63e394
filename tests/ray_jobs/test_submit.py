"""Jobs by `ray job submit` on a cluster that asks for a token: the README's commands, exit codes, status, stop."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from cinemo import lineage
from cinemo.synthetic import write_clips
from cinemo.synthetic.images import photo
from pipelines.prepare.config import PrepareConfig
from pipelines.train.losses import read_losses
from tests.pipelines.prepare.plain import prepare_plain
from tests.ray_jobs import head
from tests.ray_jobs.jobs import ROOT, saved_states

pytestmark = pytest.mark.ray

SMALL = ["--num-frames", "4", "--height", "64", "--width", "64", "--clips-per-video", "2", "--encoders", "1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[head.Head]:
    """With two CPUs: on more, jobs start more processes, all of which share two cores."""
    with head.start(tmp_path_factory.mktemp("home"), token=True, num_cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README says is there: clips/ and photos/; and a video that is none."""
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder / "clips", 8)
    (folder / "photos").mkdir()
    for name in ("coffee.png", "chelsea.png"):
        Image.fromarray(photo(name)).save(folder / "photos" / f"{name}.jpg")
    write_clips(folder / "some", 2, size=(64, 96), num_frames=60)
    (folder / "some" / "broken.mp4").write_text("no video")
    return folder


def last_line(cluster: head.Head, job: str) -> dict[str, Any]:
    """The summary, from the job's log."""
    return json.loads(cluster.client.get_job_logs(job).strip().splitlines()[-1])


def commands() -> list[str]:
    """The `ray job submit` lines of the README's section about clusters, those that go on in the next line joined."""
    section = (ROOT / "README.md").read_text().partition("## Run it on a cluster")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [line for line in block.replace("\\\n", " ").splitlines() if line.startswith("ray job submit")]


def test_exit_codes_are_read_back_from_the_cluster(cluster: head.Head, data: Path, tmp_path: Path) -> None:
    """1 and 2; the tests below have 0 and 3."""
    given = ["--input", str(data / "some"), "--score-only", *SMALL]
    (tmp_path / "file").touch()
    jobs = {
        1: cluster.submit("prepare", *given, "--output", str(tmp_path / "file" / "below")),
        2: cluster.submit("prepare", *given, "--output", "relative"),
    }
    for code, job in jobs.items():
        info = cluster.wait(job)
        said = cluster.client.get_job_logs(job)
        assert (info.status, info.driver_exit_code) == ("FAILED", code), said
        assert "Traceback" not in said
    assert "would be in the working directory of a submitted job" in cluster.client.get_job_logs(jobs[2])


def test_who_has_no_token_submits_nothing(cluster: head.Head) -> None:
    done = cluster.shell(
        "ray job submit --working-dir . -- python ray_jobs/prepare.py --help", RAY_AUTH_MODE="disabled"
    )
    assert done.returncode == 1
    assert "uthentication" in done.stdout + done.stderr


@pytest.mark.long
def test_the_commands_of_the_readme_lead_from_clips_to_videos(cluster: head.Head, data: Path) -> None:
    jobs = [re.search(r"ray_jobs/(\w+)\.py", command) for command in commands()]
    assert [job and job[1] for job in jobs] == ["prepare", "train", "animate", "evaluate"]
    for command in commands():
        began = time.monotonic()
        done = cluster.shell(command, DATA=str(data))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        job = re.findall(r"raysubmit_\w+", done.stdout)[0]
        info = cluster.client.get_job_info(job)
        assert (info.status, info.driver_exit_code) == ("SUCCEEDED", 0)
        assert json.dumps(last_line(cluster, job)) in done.stdout
        print(f"{time.monotonic() - began:5.1f} s: {command}")
    assert "succeeded" in cluster.shell(f"ray job status {job}").stdout
    assert json.dumps(last_line(cluster, job)) in cluster.shell(f"ray job logs {job}").stdout
    assert (data / "report" / "report.md").exists()
    videos = sorted((data / "videos" / "videos").glob("*.mp4"))
    assert len(videos) == 2
    chain = lineage.trace(str(videos[0]))
    (model,) = chain.came_from
    assert model.name == str(data / "train" / "model")
    run, dataset, start = model.came_from
    assert dataset.name == str(data / "dataset")
    assert (dataset.note, dataset.came_from[0].name) == (None, str(data / "clips"))
    assert start.name == "builtin:tiny"
    tags = MlflowClient(f"sqlite:///{data / 'mlflow.db'}").get_run(chain.facts["run_id"]).data.tags
    assert tags["train_run_id"] == run.name


@pytest.mark.long
def test_a_stopped_training_is_finished_by_the_same_command(
    cluster: head.Head, checkpoint: Path, tmp_path: Path
) -> None:
    """Every job is stopped by the same handler (ray_jobs/common.py); this one's run in MLflow says so too."""
    write_clips(tmp_path / "v", 8, size=(64, 96), num_frames=60)
    ds, run = tmp_path / "ds", tmp_path / "run"
    small = {"num_frames": 4, "height": 64, "width": 64, "clips_per_video": 2, "model": str(checkpoint)}
    prepare_plain(PrepareConfig(input=str(tmp_path / "v"), output=str(ds), **small))
    flags = ["--dataset", str(ds), "--output", str(run), "--init", "none", "--components", str(checkpoint)]
    flags += ["--num-workers", "2", "--checkpoint-every", "5", "--max-steps"]

    def steps() -> int:
        """Of the newest checkpoint that is whole."""
        return max((state["steps"] for state in saved_states(run)), default=0)

    first = cluster.submit("train", *flags, "10000")
    while not steps():
        assert not cluster.client.get_job_status(first).is_terminal(), cluster.client.get_job_logs(first)
    done = cluster.shell(f"ray job stop {first}")
    assert done.returncode == 0, done.stderr
    assert cluster.wait(first).status == "STOPPED"
    assert "stopped; the same command continues from here" in cluster.client.get_job_logs(first)

    kept = steps()
    again = cluster.submit("train", *flags, str(kept + 10))
    info = cluster.wait(again)
    said = cluster.client.get_job_logs(again)
    assert (info.status, info.driver_exit_code) == ("SUCCEEDED", 0), said
    assert f" 1/{kept + 10} steps" not in said  # it did not begin anew
    assert last_line(cluster, again)["steps"] == len(read_losses(str(run))) == kept + 10 < 10_000
    runs = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]


@pytest.mark.long
def test_a_cluster_without_tokens_runs_jobs_of_installed_code_and_says_their_exit_code(
    data: Path, tmp_path: Path
) -> None:
    """Neither who submits it nor the job says a mode, as on a machine where Ray never made a token.

    As in an image that has the code: nothing is brought along, and no working directory is set.
    """
    (tmp_path / "home").mkdir()
    given = ["--input", str(data / "some"), "--score-only", *SMALL, "--max-reject-fraction", "0"]
    with head.start(tmp_path / "home", token=False, num_cpus=2) as cluster:
        info = cluster.wait(job := cluster.submit("prepare", *given, "--output", str(tmp_path / "out"), installed=True))
        said = cluster.client.get_job_logs(job)
        assert (info.status, info.driver_exit_code) == ("FAILED", 3), said
        assert "Traceback" not in said
        assert last_line(cluster, job)["counts"]["rejects"] == {"unreadable": 1}
    assert (tmp_path / "out" / "dataset.json").exists()  # done, with one reject more than allowed
