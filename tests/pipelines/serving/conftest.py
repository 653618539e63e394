"""Shared by the tests of the service: a real PostgreSQL, a small model, a service in this process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from cinemo.checkpoint import ModelCard, write_card
from pipelines.serving.replica import Animator
from pipelines.serving.settings import Limits, ServeSettings
from pipelines.serving.store import Store
from tests.loras import write_adapter
from tests.pipelines.serving.in_process import serve

# A proxy of Serve that was killed is missed after seconds, not half a minute. Read when a cluster starts.
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs, where Debian puts them or on the path."""
    if found := sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return found[-1].parent
    return Path(found_on_path).parent if (found_on_path := shutil.which("initdb")) else None


class Postgres:
    """A real server of its own, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        programs = find_postgres()
        if programs is None:
            pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
        self.folder, self.programs, self.port = folder, programs, free_port()
        folder.mkdir(parents=True)
        # It refuses to run as root, so as root another user runs it, who has to get to the folder.
        self.user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
        if self.user:
            shutil.chown(folder, 65534, 65534)
            for parent in folder.parents:
                if parent.stat().st_uid == 0 and parent != Path("/"):
                    parent.chmod(parent.stat().st_mode | 0o011)
        self._run("initdb", "-D", str(folder / "data"), "-U", "cinemo", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.server: subprocess.Popen[bytes] | None = None
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self.user, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, env={**os.environ, "LC_ALL": "C"})

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port)]
        options.append("-F")  # no fsync: a killed server loses nothing by it, only a machine without power would
        command = [*self.user, str(self.programs / "postgres"), *options]
        engine = sa.create_engine(self.url("postgres").replace("postgresql:", "postgresql+psycopg:"))
        for _ in range(600):
            # After a kill it refuses to start for as long as a process of the old server still ends.
            if self.server is None or self.server.poll() is not None:
                with (self.folder / "log").open("ab") as log:
                    self.server = subprocess.Popen(
                        command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
                    )
            try:
                engine.connect().close()
                engine.dispose()
                return
            except sa.exc.OperationalError:
                time.sleep(0.1)
        pytest.fail((self.folder / "log").read_text())

    def kill(self) -> None:
        """SIGKILL the server, as a machine that loses it would."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def stop(self, stopped: bool) -> None:
        """Let the server hang, its sockets open, or go on."""
        assert self.server is not None
        server = psutil.Process(self.server.pid)
        for process in (server, *server.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def url(self, database: str) -> str:
        return f"postgresql://cinemo@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a database with nothing in it."""
        name = f"test_{uuid.uuid4().hex[:8]}"
        engine = sa.create_engine(
            self.url("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url(name)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres") / "server")
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database: SQLite, then PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    server = request.getfixturevalue("postgres")
    return server.new_database().replace("postgresql:", "postgresql+psycopg:")


@pytest.fixture
def store(database_url: str) -> Store:
    return Store(database_url)


@pytest.fixture(scope="session")
def small(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory whose videos take a moment: 4 or 8 frames of 96x64, 64x96, in 2 steps; trained on nothing."""
    model = tmp_path_factory.mktemp("model") / "small"
    shutil.copytree(checkpoint, model)
    sampling = {"num_inference_steps": 2, "guidance_scale": 1.4, "motion_bucket": 7}
    write_card(
        model, ModelCard(sizes=[(64, 96), (96, 64)], lengths=[4, 8], sampling=sampling, lineage={"recipe": "a test"})
    )
    return str(model)


@pytest.fixture(scope="session")
def loras(small: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two adapters of the small model, and one of another model, by their names in the service."""
    folder = tmp_path_factory.mktemp("loras")
    write_adapter(folder / "ink", small, 1, trigger_words="ink wash", lineage={"steps": 9})
    write_adapter(folder / "rain", small, 2)
    write_adapter(folder / "other", small, 3, unet_fingerprint="f" * 64)
    return {name: str(folder / name) for name in ("ink", "rain", "other")}


@pytest.fixture(scope="module")
def settings(small: str, loras: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    """A service of narrow limits."""
    limits = Limits(max_queue=3, max_bytes=3_000_000, max_pixels=1_000_000, max_prompt=300, max_steps=900)
    output = str(tmp_path_factory.mktemp("serve"))
    return ServeSettings(model=small, loras=loras, output=output, limits=limits, lease_s=2)


@pytest.fixture(scope="module")
def animator(settings: ServeSettings, small: str) -> Animator:
    """Its one replica, in this process."""
    return Animator(settings.model_dump(), "small", small)


@pytest.fixture(scope="module")
def client(settings: ServeSettings, animator: Animator) -> Iterator[TestClient]:
    with serve(settings, animator) as client:
        yield client


@pytest.fixture
def idle(client: TestClient) -> None:
    """Nothing waits or runs from another test."""
    for video in client.get("/v1/videos?limit=100").json()["data"]:
        client.delete(f"/v1/videos/{video['id']}")
