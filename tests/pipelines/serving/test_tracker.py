"""Finished videos in a real MLflow, and a service that goes on without one."""

import dataclasses
import socket
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.serving.metrics import Tracker
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job

RESULT = {
    "motion_score": 0.625,
    "motion_bucket": 7,
    "model_fingerprint": "abc",
    "timings": {"queued_seconds": 0.5, "animate_seconds": 2.0},
}
JOB = Job(
    id="video_1", owner="me", model="tiny", request={"prompt": "it moves", "seed": 7}, lease_owner="me",
    created_at=time.time(), status="completed", result=RESULT,
)  # fmt: skip


def test_each_finished_video_is_a_run_with_request_model_and_motion(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path / "serve"), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = Tracker(settings)
    for job in (JOB, dataclasses.replace(JOB, id="video_2"), dataclasses.replace(JOB, id="video_3", result=None)):
        tracker.ended(job)
    tracker.waiting.join()
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("cinemo")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["video"] for run in runs) == ["video_1", "video_2"]  # a failed one is no video
    assert runs[0].data.tags["model_fingerprint"] == "abc"
    assert runs[0].data.params == {"model": "tiny", "prompt": "it moves", "seed": "7"}
    assert runs[0].data.metrics == {"motion_score": 0.625, "motion_bucket": 7, **RESULT["timings"]}
    assert runs[0].info.status == "FINISHED"


def test_without_a_server_the_service_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        tracker = Tracker(ServeSettings(output=str(tmp_path), tracking_uri=f"http://127.0.0.1:{port}"))
        tracker.ended(JOB)
        waiting, _ = silent.accept()
        assert tracker.waiting.unfinished_tasks == 1  # the service went on while MLflow was asked
    waiting.close()  # without an answer, and now nobody listens
    tracker.waiting.join()
    assert "not tracked in MLflow" in capsys.readouterr().err
