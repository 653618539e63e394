"""A training ends in the registry, now or later, and what is there is a model for the next job on any node."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipelines import models, prepare, storage, train
from tests.pipelines.plain import small_config

pytestmark = pytest.mark.ray


class Server:
    """A real `mlflow server` that is not started yet."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.process = folder, None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail((self.folder / "server.log").read_text())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    if server.process is not None:
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()


def checkpoints(run: Path) -> dict[str, int]:
    """When each file of a run's checkpoints and of its model was written, by name."""
    files = [path for folder in ("checkpoints", "model") for path in (run / folder).rglob("*") if path.is_file()]
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_a_training_without_its_server_is_registered_by_the_same_command_later_and_once(
    prepare_config: prepare.PrepareConfig,
    summary: dict[str, Any],
    tmp_path: Path,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"output": str(tmp_path / "run"), "max_steps": 2, "register_as": "trained", "tracking_uri": server.uri}
    config = small_config(prepare_config.output, tmp_path).model_copy(update=changes)
    first = train.run(config)
    assert first["registered"] is None
    assert "not registered as trained@candidate" in capsys.readouterr().err
    made = checkpoints(tmp_path / "run")

    server.start()
    again, once_more = train.run(config), train.run(config)
    assert again["registered"] == once_more["registered"] == "models:/trained/1"
    assert again["model_fingerprint"] == once_more["model_fingerprint"] == first["model_fingerprint"]
    assert checkpoints(tmp_path / "run") == made
    (version,) = MlflowClient(server.uri).search_model_versions("name = 'trained'")
    tags = {name: first[name] for name in ("model_fingerprint", "dataset_fingerprint")}
    assert version.tags == tags

    # Its encoders ask the server, too: they may be on another node.
    changes = {"model": "models:/trained@candidate", "output": str(tmp_path / "ds"), "tracking_uri": server.uri}
    said = prepare.run(prepare_config.model_copy(update={**changes, "clips_per_video": 1}))
    assert said["counts"]["clips"] > 0
    vaes = [
        storage.read_json(f"{output}/dataset.json")["vae_fingerprint"] for output in (tmp_path / "ds", config.dataset)
    ]
    assert vaes[0] == vaes[1]

    more = config.model_copy(update={"init": "models:/trained@candidate", "output": str(tmp_path / "more")})
    train.check(more)
    placed = train.placed(more)
    assert train.settings(placed)["init"] == "models:/trained/1"
    assert models.resolve(placed.init) == placed.source
    assert placed.source.name == first["model_fingerprint"]
