"""MLflow: the only module that imports it.

The driver owns a run: it makes experiment and run, and passes the id to whoever else logs. Tracking never stops a job:
the first call that fails warns, and the job goes on without it.
"""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cinemo.errors import first_line, redact
from cinemo.machine import settle_environment
from pipelines.core import storage

EXPERIMENT = "cinemo"
MOST_CHARACTERS = 6000  # of a parameter's value, in MLflow's databases
FINGERPRINT = "model_fingerprint"  # the tag of a run, and of a version in the registry


class Version(NamedTuple):
    """A version of a registered model: its number, the fingerprint that it is tagged with, where its files are."""

    number: str
    fingerprint: str | None
    source: str


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
        self._try(
            lambda: [self.client.set_tag(self.run_id, name, redact(str(value))) for name, value in values.items()]
        )

    def came_from(self, job: str, tag: str, value: str) -> None:
        """Link this run to what made its data or model: tag JOB_run_id, the newest run of `job` that has this tag."""

        def send() -> None:
            experiment = self.client.get_run(self.run_id).info.experiment_id
            wanted = f"tags.job = '{job}' and tags.{tag} = '{value}'"
            for run in self.client.search_runs([experiment], wanted, max_results=1):
                self.client.set_tag(self.run_id, f"{job}_run_id", run.info.run_id)

        self._try(send)

    def picture(self, name: str, png: bytes) -> None:
        """A PNG among the run's artifacts."""

        def send() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                path.write_bytes(png)
                self.client.log_artifact(self.run_id, str(path))

        self._try(send)

    def image(self, key: str, picture: Any, step: int) -> None:
        """A PIL image of a step, among those of the same key."""
        self._try(lambda: self.client.log_image(self.run_id, picture, key=key, step=step))

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

    output: absolute path or URI of the job's output. uri: as in `address`; where there is no address, nothing is
    tracked, and a warning says so.
    """
    log = Log()
    try:
        uri = address(uri, output)
        # Artifacts of a database would go to the working directory, which is temporary under `ray job submit`.
        place = str(database.parent / "mlflow-artifacts") if (database := _database(uri)) else None
        if database:
            database.parent.mkdir(parents=True, exist_ok=True)
        client = _client(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, place)
        run = client.create_run(experiment_id, run_name=job, tags={"job": job, "output": redact(output)})
        log = Log(client, run.info.run_id, uri)
        for name, value in parameters.items():
            client.log_param(run.info.run_id, name, shorten(name, redact(str(value))))
    except Exception as error:
        _warn(error)
    try:
        yield log
    except BaseException as error:
        log.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    log.end("FINISHED")


def shorten(name: str, value: str) -> str:
    """What MLflow takes of a parameter's value: it refuses longer ones, and they would cost the run all others."""
    if len(value) <= MOST_CHARACTERS:
        return value
    print(f"note: {name} has {len(value):,} characters; MLflow keeps the first {MOST_CHARACTERS:,}", file=sys.stderr)
    return value[: MOST_CHARACTERS - 3] + "..."


def join(uri: str | None, run_id: str | None) -> Log:
    """The driver's run, seen from another process."""
    if not uri or not run_id:
        return Log()
    try:
        return Log(_client(uri), run_id, uri)
    except Exception as error:
        _warn(error)
        return Log()


def address(uri: str | None, output: str) -> str:
    """MLflow's address: `uri`, else MLFLOW_TRACKING_URI, else mlflow.db beside `output`; a database's path is absolute.

    Raises ValueError where there is none of these, because the output is remote.
    """
    if found := uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return f"sqlite:///{database.absolute()}" if (database := _database(found)) else found
    if not storage.is_local(output):
        raise ValueError(f"{output} is remote; set --tracking-uri or MLFLOW_TRACKING_URI for MLflow")
    return f"sqlite:///{Path(storage.absolute(output)).parent / 'mlflow.db'}"


def register(log: Log, folder: Path, name: str, alias: str, tags: Mapping[str, str]) -> Version:
    """Copy a model directory to the registry, as files of the run, and put the alias on it.

    tags: of the version, FINGERPRINT among them. Where a version of this fingerprint is registered already, it gets the
    alias, and no other one is made. Unlike logging, this raises what MLflow raises.
    """
    if log.uri is None or log.run_id is None:
        raise ConnectionError("there is no run in MLflow to register it from")
    client = _client(log.uri)  # not the log's, which is given up at its first failure: the server may be back
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    same = client.search_model_versions(f"name = '{name}' and tags.{FINGERPRINT} = '{tags[FINGERPRINT]}'")
    if same:
        version = same[0]
    else:
        client.log_artifacts(log.run_id, str(folder), "model")
        source = f"{client.get_run(log.run_id).info.artifact_uri}/model"
        version = client.create_model_version(name, source, log.run_id, tags=dict(tags))
    client.set_registered_model_alias(name, alias, version.version)
    return Version(str(version.version), tags[FINGERPRINT], version.source)


def find_version(name: str, version: str | None, alias: str | None, uri: str) -> Version:
    """What the registry at `uri` has under a number or an alias. Raises ValueError: it has none, or does not answer."""
    wanted = f"models:/{name}/{version}" if version else f"models:/{name}@{alias}"
    database = _database(uri)
    if database and not database.exists():  # opening it would make it
        raise ValueError(
            f"model {wanted}: there is no registry at {redact(uri)}; set --tracking-uri or MLFLOW_TRACKING_URI"
        )
    try:
        client = _client(uri)
        found = client.get_model_version(name, version) if version else client.get_model_version_by_alias(name, alias)
        source = client.get_model_version_download_uri(name, found.version)
    except Exception as error:
        place = redact(uri)
        raise ValueError(
            f"model {wanted} is not to be had from the registry at {place}: {type(error).__name__}: {first_line(error)}"
        ) from error
    return Version(str(found.version), found.tags.get(FINGERPRINT), source)


def download(source: str, folder: Path, uri: str) -> Path:
    """The files at a version's source, below `folder`; returns where. Raises OSError."""
    _client(uri)  # sets how long a server that is away is waited for
    from mlflow.artifacts import download_artifacts

    try:
        return Path(download_artifacts(source, dst_path=str(folder), tracking_uri=uri))
    except Exception as error:  # every kind of storage raises its own
        raise OSError(f"{type(error).__name__}: {first_line(error)}") from error


def _database(uri: str) -> Path | None:
    """The file of an SQLite address, None for any other address."""
    return Path(uri.removeprefix("sqlite:///")) if re.match("sqlite:///.", uri) else None


def _client(uri: str) -> Any:
    settle_environment()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A server that went away is given up after seconds, not after the minutes that MLflow's defaults come to.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # they announce every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _warn(error: Exception) -> None:
    print(
        f"warning: not tracked in MLflow ({type(error).__name__}: {first_line(error)}); the job goes on",
        file=sys.stderr,
    )
