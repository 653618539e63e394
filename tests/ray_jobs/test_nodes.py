"""Jobs on a cluster of several nodes, one of which goes away and comes back.

All are on one cluster: each test says which nodes it needs, and those that the test before left are among them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cinemo.synthetic import write_clips
from cinemo.synthetic.images import photo
from pipelines.prepare.config import PrepareConfig
from pipelines.train.losses import read_losses
from tests.pipelines.conftest import rows
from tests.pipelines.prepare.plain import prepare_plain
from tests.ray_jobs import jobs
from tests.ray_jobs.nodes import Nodes, started

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with started(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def lose_a_node(cluster: Nodes, job: Any, begun: Callable[[], object]) -> dict[str, Any]:
    """Take a node away as a power cut does, once `begun` holds; the summary of the job, which ends all the same."""
    jobs.wait_until(job, begun)
    cluster.lose()
    code, summary, errors = jobs.finish(job)
    assert code == 0, errors
    return summary


def test_a_preparation_loses_one_of_two_nodes_and_finishes(cluster: Nodes, tmp_path: Path, checkpoint: Path) -> None:
    cluster.have(2, 2)
    write_clips(tmp_path / "v", 16, size=(64, 96), num_frames=60)
    flags = ["--input", "v", "--output", "ds", "--model", str(checkpoint), "--num-frames", "4", "--height", "64"]
    flags += ["--width", "64", "--clips-per-video", "4", "--clips-per-file", "1", "--encoders", "2"]
    ds = tmp_path / "ds"
    job = jobs.start("prepare", tmp_path, *flags, address=cluster.address)
    summary = lose_a_node(cluster, job, lambda: list(ds.glob("data/part-*")))
    assert sorted(row["clip_id"] for row in rows(ds)) == sorted(jobs.wanted_clips(tmp_path / "v", 4))
    assert not summary["counts"]["rejects"]


def test_a_catalog_loses_one_of_two_nodes_and_finishes(cluster: Nodes, tmp_path: Path, checkpoint: Path) -> None:
    cluster.have(2, 2)
    out = tmp_path / "out"
    (tmp_path / "photos").mkdir()
    for number in range(32):
        Image.fromarray(photo("coffee.png")[number : number + 96, :96]).save(tmp_path / "photos" / f"{number}.png")
    flags = ["--catalog", "photos", "--output", "out", "--prompt", "a photo", "--model", str(checkpoint)]
    flags += ["--size", "64x64", "--num-frames", "4", "--num-inference-steps", "2", "--batch", "1"]
    job = jobs.start("animate", tmp_path, *flags, "--min-replicas", "2", address=cluster.address)
    summary = lose_a_node(cluster, job, lambda: list(out.glob("videos/*.json")))
    assert summary["counts"] == {"rows": 32, "listed": 32, "videos": 32, "rejected": 0, "rejects": {}}
    assert len(list(out.glob("videos/*.mp4"))) == 32


def test_a_training_loses_a_node_goes_on_with_one_worker_grows_and_saves_when_a_node_will_be_taken(
    cluster: Nodes, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How long Ray waits for room for two workers, where it did not know yet that a node is gone, before it takes one.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    cluster.have(1)  # and one of the head's: a worker on each
    write_clips(tmp_path / "v", 8, size=(64, 96), num_frames=60)
    small = {"num_frames": 4, "height": 64, "width": 64, "clips_per_video": 2, "model": str(checkpoint)}
    prepare_plain(PrepareConfig(input=str(tmp_path / "v"), output=str(tmp_path / "ds"), **small))
    flags = ["--dataset", "ds", "--output", "run", "--init", "none", "--components", str(checkpoint)]
    flags += ["--num-workers", "1:2", "--checkpoint-every", "10"]
    run = tmp_path / "run"

    def world() -> tuple[int, int]:
        """(steps, workers) of the newest checkpoint that is whole."""
        return max(((state["steps"], state["world_size"]) for state in jobs.saved_states(run)), default=(0, 0))

    job = jobs.start("train", tmp_path, *flags, "--resize-every", "2", "--max-steps", "100000", address=cluster.address)
    jobs.wait_until(job, lambda: world()[1] == 2)
    cluster.lose()
    jobs.wait_until(job, lambda: world()[1] == 1)
    cluster.add(1)
    alone = world()[0]
    jobs.wait_until(job, lambda: world()[1] == 2)
    assert world()[0] > alone
    cluster.drain()
    # A checkpoint that only the notice is a reason for.
    jobs.wait_until(job, lambda: any(state["steps"] % 10 for state in jobs.saved_states(run)))
    jobs.kill(job)

    last = world()[0] // 10 * 10 + 20
    code, summary, errors = jobs.finish(jobs.start("train", tmp_path, *flags, "--max-steps", str(last)))
    assert code == 0, errors
    assert summary["steps"] == len(read_losses(str(run))) == last
    assert summary["loss_last_20"] < summary["loss_first_20"]
