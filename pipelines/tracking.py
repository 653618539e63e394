"""MLflow: the only module that imports it.

The driver owns a run: it makes experiment and run, and passes the id to whoever else logs. Tracking never stops a job:
the first call that fails warns, and the job goes on without it. Knows parameters, metrics and small pictures. Knows
nothing of clips or models.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import storage

EXPERIMENT = "cinemo"


class Log:
    """A run to log to. Without a run (tracking failed, or none is wanted) every call does nothing."""

    def __init__(self, client: Any = None, run_id: str | None = None, uri: str | None = None) -> None:
        self.client, self.run_id, self.uri = client, run_id, uri

    def metrics(self, values: Mapping[str, float]) -> None:
        """Numbers that a run has once."""
        self.series([(0, values)])

    def series(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Numbers of several steps, (step, values), in one request."""

        def send() -> None:
            from mlflow.entities import Metric
            from mlflow.utils.time import get_current_time_millis

            now = get_current_time_millis()
            metrics = [Metric(name, float(number), now, step) for step, row in rows for name, number in row.items()]
            self.client.log_batch(self.run_id, metrics=metrics)

        self._try(send)

    def tags(self, values: Mapping[str, Any]) -> None:
        """What links this run to data, models and other runs."""
        self._try(lambda: [self.client.set_tag(self.run_id, name, value) for name, value in values.items()])

    def picture(self, name: str, png: bytes) -> None:
        """A PNG among the run's artifacts."""

        def send() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(png)
                self.client.log_artifact(self.run_id, str(path))

        self._try(send)

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._try(lambda: self.client.set_terminated(self.run_id, status))

    def _try(self, send: Callable[[], Any]) -> None:
        if self.client is None:
            return
        try:
            send()
        except Exception as error:
            _warn(error)
            self.client = None


@contextmanager
def start(job: str, output: str, uri: str | None, parameters: Mapping[str, Any]) -> Iterator[Log]:
    """A run for the time of a job, in the driver. Ends as FAILED when the job raises.

    output: absolute path or URI of the job's output. uri: MLflow's address; default: MLFLOW_TRACKING_URI, else
    mlflow.db beside the output. A remote output has no such place: then nothing is tracked, and a warning says so.
    """
    log = Log()
    try:
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or _beside(output)
        client = _client(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        # Artifacts of a database would go to the working directory, which is temporary under `ray job submit`.
        place = (
            Path(uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts" if uri.startswith("sqlite:///") else None
        )
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(EXPERIMENT, str(place) if place else None)
        )
        run = client.create_run(experiment_id, run_name=job, tags={"job": job, "output": output})
        log = Log(client, run.info.run_id, uri)
        for name, value in parameters.items():
            client.log_param(run.info.run_id, name, value)
    except Exception as error:
        _warn(error)
    try:
        yield log
    except BaseException as error:
        log.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    log.end("FINISHED")


def join(uri: str | None, run_id: str | None) -> Log:
    """The driver's run, seen from another process."""
    if not uri or not run_id:
        return Log()
    try:
        return Log(_client(uri), run_id, uri)
    except Exception as error:
        _warn(error)
        return Log()


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # A server that went away is given up after seconds, not after the minutes that MLflow's defaults come to.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # they announce every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _beside(output: str) -> str:
    if not storage.is_local(output):
        raise ValueError(f"{output} is remote; set --tracking-uri or MLFLOW_TRACKING_URI to track the run")
    folder = Path(output).parent
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _warn(error: Exception) -> None:
    first_line = str(error).strip().split("\n")[0]
    print(f"warning: not tracked in MLflow ({type(error).__name__}: {first_line}); the job goes on", file=sys.stderr)
