"""A training ends in the registry, now or later, and what is there is a model for the next job on any node."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.core import models, storage
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig
from pipelines.train import data
from pipelines.train import job as train
from tests.pipelines.train.faults import Server, written
from tests.pipelines.train.plain import small_config

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A tracking server that is not started yet."""
    server = Server(tmp_path)
    yield server
    server.end()


def test_a_training_without_its_server_is_registered_by_the_same_command_later_and_once(
    prepared: str,
    prepare_config: PrepareConfig,
    ray_cluster: None,
    tmp_path: Path,
    server: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"output": str(tmp_path / "run"), "max_steps": 2, "num_workers": 1, "register_as": "trained"}
    config = small_config(prepared, tmp_path).model_copy(update={**changes, "tracking_uri": server.uri})
    first = train.run(train.resolve(config))
    assert first["registered"] is None
    assert "not registered as trained@candidate" in capsys.readouterr().err
    made = written(tmp_path / "run")

    server.start()
    again, once_more = train.run(train.resolve(config)), train.run(train.resolve(config))
    assert again["registered"] == once_more["registered"] == "models:/trained/1"
    assert again["model_fingerprint"] == once_more["model_fingerprint"] == first["model_fingerprint"]
    assert written(tmp_path / "run") == made
    (version,) = MlflowClient(server.uri).search_model_versions("name = 'trained'")
    tags = {name: first[name] for name in ("model_fingerprint", "dataset_fingerprint")}
    assert version.tags == tags

    # Its encoders ask the server, too: they may be on another node.
    changes = {"model": "models:/trained@candidate", "output": str(tmp_path / "ds"), "tracking_uri": server.uri}
    summary = prepare.run(prepare.resolve(prepare_config.model_copy(update={**changes, "clips_per_video": 1})))
    assert summary["counts"]["clips"] > 0
    vaes = [
        storage.read_json(f"{output}/dataset.json")["vae_fingerprint"] for output in (tmp_path / "ds", config.dataset)
    ]
    assert vaes[0] == vaes[1]

    more = config.model_copy(update={"init": "models:/trained@candidate", "output": str(tmp_path / "more")})
    job = train.resolve(more)
    assert job.identity["init"] == "models:/trained/1"
    assert models.resolve(job.config.init) == data.directory(job.config)
    assert data.directory(job.config).name == first["model_fingerprint"]
