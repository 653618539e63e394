"""Jobs by `ray job submit` on a cluster that asks for a token: the README's commands, exit codes, status, stop."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from cinemo import lineage
from cinemo.synthetic import write_clips
from cinemo.synthetic.images import photo
from pipelines import train
from tests.pipelines.conftest import rows
from tests.ray_jobs import head
from tests.ray_jobs.jobs import ROOT, saved_states, wanted_clips

pytestmark = pytest.mark.ray

SMALL = ["--num-frames", "4", "--height", "64", "--width", "64", "--clips-per-video", "2", "--encoders", "1"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[head.Head]:
    with head.start(tmp_path_factory.mktemp("home"), token=True) as cluster:
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
    given = ["--input", str(data / "some"), "--score-only", *SMALL]
    (tmp_path / "file").touch()
    jobs = {
        # The first as an image does that has the code: nothing is brought along, and no working directory is set.
        0: cluster.submit("prepare", *given, "--output", str(tmp_path / "done"), installed=True),
        1: cluster.submit("prepare", *given, "--output", str(tmp_path / "file" / "below")),
        2: cluster.submit("prepare", *given, "--output", "relative"),
        3: cluster.submit("prepare", *given, "--output", str(tmp_path / "rejects"), "--max-reject-fraction", "0"),
    }
    for code, job in jobs.items():
        info = cluster.wait(job)
        said = cluster.client.get_job_logs(job)
        assert info.driver_exit_code == code, said
        assert info.status == ("SUCCEEDED" if code == 0 else "FAILED")
        assert "Traceback" not in said
    assert "would be in the working directory of a submitted job" in cluster.client.get_job_logs(jobs[2])
    for code in (0, 3):
        assert last_line(cluster, jobs[code])["counts"]["rejects"] == {"unreadable": 1}


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
        done = cluster.shell(command, DATA=str(data))
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        job = re.findall(r"raysubmit_\w+", done.stdout)[0]
        assert cluster.client.get_job_info(job).driver_exit_code == 0
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


def stop_and_go_on(
    cluster: head.Head,
    name: str,
    flags: list[str],
    begun: Callable[[], object],
    last: Callable[[], list[str]] | None = None,
    command: bool = False,
) -> dict[str, Any]:
    """Submit a job, stop it once `begun` holds, submit it again; the summary of the second.

    last: flags of the second. command: stop it as a shell does, which takes seconds, in which a short job would end.
    """
    first = cluster.submit(name, *flags)
    while not begun():
        assert not cluster.client.get_job_status(first).is_terminal(), cluster.client.get_job_logs(first)
    if command:
        done = cluster.shell(f"ray job stop {first}")
        assert done.returncode == 0, done.stderr
    else:
        cluster.client.stop_job(first)
    assert cluster.wait(first).status == "STOPPED"
    assert "stopped; the same command goes on from here" in cluster.client.get_job_logs(first)
    again = cluster.submit(name, *(last() if last else flags))
    info = cluster.wait(again)
    assert (info.status, info.driver_exit_code) == ("SUCCEEDED", 0), cluster.client.get_job_logs(again)
    return last_line(cluster, again)


@pytest.mark.long
def test_a_stopped_preparation_and_training_are_finished_by_the_same_command(
    cluster: head.Head, checkpoint: Path, tmp_path: Path
) -> None:
    write_clips(tmp_path / "v", 24, size=(64, 96), num_frames=60)
    ds, run = tmp_path / "ds", tmp_path / "run"
    flags = ["--input", str(tmp_path / "v"), "--output", str(ds), "--model", str(checkpoint), *SMALL]
    flags += ["--clips-per-file", "1"]
    written: dict[str, int] = {}

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in ds.glob("data/part-*")}

    def begun() -> bool:
        written.update(parts())
        return bool(written)

    said = stop_and_go_on(cluster, "prepare", flags, begun)
    wanted, made = wanted_clips(tmp_path / "v", 2), [row["clip_id"] for row in rows(ds)]
    assert (sorted(made), said["counts"]["clips"]) == (sorted(wanted), len(wanted))
    assert written.items() <= parts().items()
    assert said["new_clips"] < len(wanted)

    flags = ["--dataset", str(ds), "--output", str(run), "--init", "none", "--components", str(checkpoint)]
    flags += ["--num-workers", "2", "--checkpoint-every", "5", "--max-steps"]

    def steps() -> int:
        """Of the newest checkpoint that is whole."""
        return max((state["steps"] for state in saved_states(run)), default=0)

    def some_more() -> list[str]:
        return [*flags, str(steps() + 10)]

    said = stop_and_go_on(cluster, "train", [*flags, "10000"], steps, some_more, command=True)
    assert said["steps"] == len(train.read_losses(str(run)))
    assert 15 <= said["steps"] < 10_000
    runs = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", "KILLED", "KILLED"]


@pytest.mark.long
def test_a_stopped_catalog_is_finished_by_the_same_command(cluster: head.Head, data: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(12):
        Image.fromarray(photo("coffee.png")[number:]).save(photos / f"{number}.png")
    flags = ["--catalog", str(photos), "--output", str(out), "--prompt", "a photo", "--num-inference-steps", "8"]
    flags += ["--min-replicas", "1", "--max-replicas", "1"]
    said = stop_and_go_on(cluster, "animate", flags, lambda: list(out.glob("videos/*.json")))
    assert said["counts"]["videos"] == len(list(out.glob("videos/*.mp4"))) == 12
    assert 0 < said["new_videos"] < 12


@pytest.mark.long
def test_a_cluster_without_tokens_runs_jobs_too(data: Path, tmp_path: Path) -> None:
    """Neither who submits it nor the job says a mode, as on a machine where Ray never made a token."""
    (tmp_path / "home").mkdir()
    given = ["--input", str(data / "some"), "--score-only", *SMALL]
    with head.start(tmp_path / "home", token=False) as cluster:
        info = cluster.wait(job := cluster.submit("prepare", *given, "--output", str(tmp_path / "out")))
        assert info.driver_exit_code == 0, cluster.client.get_job_logs(job)
