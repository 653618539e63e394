"""Faults of a training, made on purpose: a killed worker, a clip with NaN, stale shards, a lost tracking server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


class Server:
    """A real `mlflow server`, not started yet."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.process = folder, None

    def start(self) -> None:
        """Start it, and return once it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        # Neither telemetry nor the processes for jobs of its own, of which there are five.
        own = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment = {**os.environ, **own}
        with (self.folder / "server.log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self.folder / "server.log").read_text())

    def end(self) -> None:
        """SIGKILL it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def spoil(prepared: str, folder: Path, clip_id: str) -> str:
    """Path of a copy of a dataset in which one latent of this clip is NaN."""
    shutil.copytree(prepared, folder / "spoiled")
    for path in (folder / "spoiled" / "data").rglob("*.parquet"):
        table = pq.read_table(path)
        ids = table["clip_id"].to_pylist()
        if clip_id in ids:
            place = table.schema.get_field_index("latents")
            latents = table["latents"].combine_chunks().to_numpy_ndarray().copy()
            latents[ids.index(clip_id), 0, 0, 0, 0] = np.nan
            spoiled = pa.FixedShapeTensorArray.from_numpy_ndarray(latents)
            pq.write_table(table.set_column(place, table.schema.field(place), spoiled), path)
            return str(folder / "spoiled")
    raise AssertionError(f"{prepared} has no clip {clip_id}")


def when(ready: Callable[[], Any], act: Callable[[], None]) -> threading.Thread:
    """In the background, do something as soon as `ready` holds."""

    def wait() -> None:
        while not ready():
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def kill_a_worker() -> int:
    """SIGKILL the second of the two training processes below this one; returns its id."""
    workers = [child for child in psutil.Process().children(recursive=True) if "TrainWorker" in child.name()]
    assert len(workers) == 2, workers
    workers[1].kill()
    return workers[1].pid


def last_state(run: Path) -> dict[str, Any]:
    """state.json of a run's last checkpoint."""
    return json.loads(max((run / "checkpoints").glob("step_*/state.json")).read_text())


def leave_stale_shards(run: Path) -> None:
    """In a run's last checkpoint, what a worker of another layout had written when it was killed."""
    for layout in ("zero2-x3-fp32-none-none-no", "zero1-x1-fp32-none-none-no", "zero3-x2-fp32-none-none-no"):
        stale = max((run / "checkpoints").glob("step_*")) / layout
        if not stale.exists():
            stale.mkdir()
            (stale / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"half a file")


def leave_a_stale_row(run: Path) -> None:
    """In a run's validation.csv, a row of a step after its last checkpoint, as a killed run leaves one."""
    with (run / "validation.csv").open("a") as file:
        file.write(f"99,{'1.0,' * 25}1.0\n")


def written(run: Path) -> dict[str, int]:
    """When each file of a run's checkpoints and of its model was written, by name."""
    files = [path for folder in ("checkpoints", "model") for path in (run / folder).rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files}
