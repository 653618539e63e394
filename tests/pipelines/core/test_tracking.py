"""Runs in MLflow are linked by tags, from that of a video to that of the data; and tracking stops no job."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.core import tracking


def test_a_run_leads_to_those_that_made_its_model_and_its_data(tmp_path: Path) -> None:
    uri, place = f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "out")
    for _ in range(2):  # a job that is run again makes another run: the newest counts
        with tracking.start("prepare", place, uri, {}) as prepare:
            prepare.tags({"dataset_fingerprint": "d1"})
    with tracking.start("train", place, uri, {}) as train:
        train.tags({"dataset_fingerprint": "d1", tracking.FINGERPRINT: "m1"})
        train.came_from("prepare", "dataset_fingerprint", "d1")
    with tracking.start("animate", place, uri, {}) as animate:
        animate.tags({tracking.FINGERPRINT: "m1"})
        animate.came_from("train", tracking.FINGERPRINT, "m1")
        animate.came_from("prepare", "dataset_fingerprint", "unknown")
    client = MlflowClient(uri)

    def tags(run_id: str | None) -> dict[str, str]:
        assert run_id is not None
        return client.get_run(run_id).data.tags

    assert tags(animate.run_id)["train_run_id"] == train.run_id
    assert tags(train.run_id)["prepare_run_id"] == prepare.run_id
    assert "prepare_run_id" not in tags(animate.run_id)


def test_a_long_parameter_costs_itself_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = {"first": 1, "prompt": "x" * 7000, "list": list(range(3000)), "just": "y" * 6000, "last": None}
    with tracking.start("animate", str(tmp_path / "out"), uri, given) as log:
        log.metrics({"videos": 3})
    assert log.run_id is not None
    run = MlflowClient(uri).get_run(log.run_id)
    assert run.data.params == {
        "first": "1", "prompt": "x" * 5997 + "...", "list": str(given["list"])[:5997] + "...", "just": "y" * 6000,
        "last": "None",
    }  # fmt: skip
    assert run.data.metrics == {"videos": 3}
    said = capsys.readouterr().err
    assert "note: prompt has 7,000 characters; MLflow keeps the first 6,000" in said
    assert "not tracked" not in said


def test_a_database_that_cannot_be_opened_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").write_text("no database")
    with tracking.start("prepare", str(tmp_path / "out"), f"sqlite:///{tmp_path / 'mlflow.db'}", {"a": 1}) as log:
        log.came_from("train", tracking.FINGERPRINT, "m1")
    assert log.run_id is None
    assert capsys.readouterr().err.count("warning: not tracked in MLflow") == 1
