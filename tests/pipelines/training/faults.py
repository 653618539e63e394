"""Training when things go wrong: killed workers, clips that are no numbers, a tracking server that goes away."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import dataset, prepare, train
from tests.pipelines.plain import exported, run_plain, small_config

pytestmark = pytest.mark.ray


def spoil(prepared: str, folder: Path) -> tuple[str, str]:
    """A copy of a dataset one of whose clips has a latent that is no number: (its path, the clip's id)."""
    shutil.copytree(prepared, folder / "spoiled")
    path = sorted((folder / "spoiled" / "data").glob("*.parquet"))[0]
    table = pq.read_table(path)
    place = table.schema.get_field_index("latents")
    latents = table["latents"].combine_chunks().to_numpy_ndarray().copy()
    latents[0, 0, 0, 0, 0] = np.nan
    spoiled = pa.FixedShapeTensorArray.from_numpy_ndarray(latents)
    pq.write_table(table.set_column(place, table.schema.field(place), spoiled), path)
    return str(folder / "spoiled"), table["clip_id"][0].as_py()


def when(ready: Callable[[], Any], act: Callable[[Any], None]) -> threading.Thread:
    """In the background, do something with the first true value of `ready`."""

    def wait() -> None:
        while not (value := ready()):
            time.sleep(0.02)
        act(value)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_a_worker(done: list[int]) -> None:
    """SIGKILL one of the training processes below this one."""
    workers = [child for child in psutil.Process().children(recursive=True) if "TrainWorker" in child.name()]
    assert len(workers) == 2, workers
    workers[1].kill()
    done.append(workers[1].pid)


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """(address, a function that ends it) of a real MLflow server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server"]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}", end
    end()


@pytest.mark.long
def test_a_killed_worker_and_a_spoiled_clip_and_a_lost_tracking_server_leave_the_run_exact(
    prepare_config: prepare.PrepareConfig,
    summary: dict[str, Any],
    tmp_path: Path,
    tracking_server: tuple[str, Callable[[], None]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    spoiled, clip_id = spoil(prepare_config.output, tmp_path)
    address, end_server = tracking_server
    run = tmp_path / "run"
    saved = run / "checkpoints"
    config = small_config(spoiled, tmp_path).model_copy(
        update={"output": str(run), "checkpoint_every": 3, "max_steps": 14, "zero_stage": 0, "tracking_uri": address}
    )
    plain = run_plain(config, 24)
    bad = [step + 1 for step, loss in enumerate(plain.losses) if np.isnan(loss)]
    assert 2 <= sum(step <= 14 for step in bad) <= 4

    # Without shards: a worker and the tracking server die after the second checkpoint.
    killed: list[int] = []
    killer = when(lambda: list(saved.glob("step_0000006/state.json")), lambda _: (kill_a_worker(killed), end_server()))
    said = train.run(config)
    killer.join(timeout=10)
    assert len(killed) == 1
    np.testing.assert_allclose(train.read_losses(str(run)), plain.losses[:14], rtol=1e-4)
    assert said["bad_steps"] == [{"step": step, "clips": [clip_id]} for step in bad if step <= 14]
    assert "not tracked in MLflow" in capfd.readouterr().err

    # With sharded weights, to the end.
    said = train.run(config.model_copy(update={"zero_stage": 3, "max_steps": 24, "tracking_uri": None}))
    np.testing.assert_allclose(train.read_losses(str(run)), plain.losses, rtol=1e-4)
    assert [entry["step"] for entry in said["bad_steps"]] == bad
    assert plain.distance(exported(said["model"]), plain.average) < 1e-3

    # One bad step more than allowed: the run stops at once, and what is there stays there.
    before = {path: path.stat().st_mtime_ns for path in [*saved.rglob("*.pt"), *(run / "model").rglob("*.safetensors")]}
    changes = {"max_steps": 40, "max_bad_steps": len(bad), "zero_stage": 2, "checkpoint_every": 40}
    last = config.model_copy(update={**changes, "tracking_uri": None})
    clips = dataset.ClipReader(spoiled)
    positions = {clips[position].clip_id: position for position in range(len(clips))}
    batches = [dataset.batch_positions(len(clips), config.total_batch, config.seed, step) for step in range(40)]
    next_bad = next(step + 1 for step in range(24, 40) if positions[clip_id] in batches[step])
    with pytest.raises(RuntimeError, match=rf"step {next_bad} has no finite loss .* look at the clips {clip_id}, or"):
        train.run(last)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in before if path.exists()}.items()
