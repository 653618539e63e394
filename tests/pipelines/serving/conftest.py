"""What the tests of the service share: a real PostgreSQL, a database for each test."""

import contextlib
import io
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import skimage.data
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from PIL import Image

from pipelines.serving import catalog, page
from pipelines.serving.animator import Animator
from pipelines.serving.api import Service, create_app
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.metrics import Metrics
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store


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


def png(size: tuple[int, int] = (96, 64)) -> bytes:
    """A small photo as the bytes of a PNG: (width, height)."""
    picture = Image.fromarray(skimage.data.astronaut()).resize(size)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def in_thread(server: uvicorn.Server) -> Iterator[None]:
    """A server that runs for the time of a block."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield
    server.should_exit = True
    thread.join(timeout=20)


def application(settings: ServeSettings, animator: Animator, with_page: bool = False) -> FastAPI:
    """The whole application over one replica in this process, without Ray."""
    metrics, store = Metrics(), Store(settings.store_url)
    dispatcher = Dispatcher(settings, store, {"builtin:tiny": animator.animate}, metrics.ended)
    service = Service(settings, store, dispatcher, {"builtin:tiny": catalog.look_up("builtin:tiny", "builtin:tiny")})

    async def ready() -> list[str]:
        return []

    app = create_app(service, metrics, ready)
    if with_page:
        page.mount(app, service)
    return app
