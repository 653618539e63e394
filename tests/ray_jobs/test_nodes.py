"""Jobs on a cluster of several nodes, one of which goes away and comes back."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cinemo.synthetic import write_clips
from pipelines import train
from tests.ray_jobs import jobs

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and one more node, of one CPU each, as processes of this machine, that ask for a token."""
    (tmp_path / "token").write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.long
def test_a_training_loses_a_node_goes_on_with_one_worker_and_grows_when_a_node_comes(
    cluster: Any, tmp_path: Path, checkpoint: Path
) -> None:
    write_clips(tmp_path / "v", 6, size=(64, 96), num_frames=60)
    small = ["--num-frames", "4", "--height", "64", "--width", "64", "--clips-per-video", "2"]
    code, _, errors = jobs.finish(
        jobs.start("prepare", tmp_path, "--input", "v", "--output", "ds", "--model", str(checkpoint), *small)
    )
    assert code == 0, errors
    flags = ["--dataset", "ds", "--output", "run", "--init", "none", "--components", str(checkpoint)]
    flags += ["--num-workers", "1:2", "--checkpoint-every", "10"]
    run = tmp_path / "run"

    def world() -> tuple[int, int]:
        """(steps, workers) of the newest checkpoint that is whole."""
        states = [json.loads(path.read_text()) for path in run.glob("checkpoints/step_*/state.json")]
        return max(((state["steps"], state["world_size"]) for state in states), default=(0, 0))

    job = jobs.start("train", tmp_path, *flags, "--resize-every", "2", "--max-steps", "100000", address=cluster.address)
    jobs.wait_until(job, lambda: world()[1] == 2)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    jobs.wait_until(job, lambda: world()[1] == 1)
    cluster.add_node(num_cpus=1)
    alone = world()[0]
    jobs.wait_until(job, lambda: world()[1] == 2)
    assert world()[0] > alone
    jobs.kill(job)

    last = world()[0] + 10
    code, summary, errors = jobs.finish(jobs.start("train", tmp_path, *flags, "--max-steps", str(last)))
    assert code == 0, errors
    assert summary["steps"] == len(train.read_losses(str(run))) == last
    assert summary["loss_last_20"] < summary["loss_first_20"]
