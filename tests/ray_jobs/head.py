"""A cluster of one node as `ray start --head` makes it, on free ports, with or without a token; and jobs on it."""

import contextlib
import os
import secrets
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from ray.job_submission import JobSubmissionClient

from tests.ray_jobs.jobs import ROOT

BIN = Path(sys.executable).parent


class Head(NamedTuple):
    """Where the cluster answers; the environment of a shell that uses it; and Ray's client, which has the token."""

    address: str
    environment: dict[str, str]
    client: JobSubmissionClient

    def shell(self, command: str, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a command from the root of the checkout, as a user does."""
        environment = self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | more
        return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)

    def submit(self, name: str, *flags: str, installed: bool = False) -> str:
        """Submit a job from Python; its id. installed: the code is on the node, and is not brought along."""
        script = str(ROOT / "ray_jobs" / f"{name}.py") if installed else f"ray_jobs/{name}.py"
        runtime_env = {} if installed else {"working_dir": str(ROOT)}
        return self.client.submit_job(entrypoint=shlex.join(["python", script, *flags]), runtime_env=runtime_env)

    def wait(self, job: str, timeout: float = 300) -> Any:
        """What Ray says of a job that has ended: status, driver_exit_code, ..."""
        deadline = time.monotonic() + timeout
        while not self.client.get_job_status(job).is_terminal():
            assert time.monotonic() < deadline, self.client.get_job_logs(job)
            time.sleep(0.2)
        return self.client.get_job_info(job)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def start(folder: Path, token: bool, num_cpus: int = 4, **more: str) -> Iterator[Head]:
    """A head in a process of this one, which alone is stopped in the end.

    folder: its home. num_cpus: logical ones. more: environment variables of the cluster.
    """
    left_out = ("PYTHONPATH", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    environment |= {"HOME": str(folder), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | more
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "30"  # from SIGTERM to SIGKILL; three are few on a busy machine
    headers = None
    if token:
        secret = secrets.token_hex(32)
        (folder / ".ray").mkdir()
        (folder / ".ray" / "auth_token").write_text(secret)
        environment["RAY_AUTH_MODE"] = "token"
        headers = {"Authorization": f"Bearer {secret}"}
    port, dashboard, agent, client_server = free_ports(4)
    flags = f"--head --block --port {port} --dashboard-port {dashboard} --dashboard-agent-listen-port {agent}"
    flags += f" --ray-client-server-port {client_server} --min-worker-port 0 --max-worker-port 0"
    flags += f" --num-cpus {num_cpus} --object-store-memory 500000000 --dashboard-host 127.0.0.1 --disable-usage-stats"
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as temporary:  # paths of sockets must be short
        command = [str(BIN / "ray"), "start", *flags.split(), "--temp-dir", temporary]
        with (folder / "ray.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            address = f"http://127.0.0.1:{dashboard}"
            wait_until_up(address, process, headers)
            yield Head(address, environment, JobSubmissionClient(address, headers=headers))
        finally:
            stop(process)


def wait_until_up(address: str, process: "subprocess.Popen[bytes]", headers: dict[str, str] | None) -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/api/jobs/", headers=headers, timeout=5).status_code == 200:
                return
        assert process.poll() is None, "ray start ended"
        assert time.monotonic() < deadline, "no dashboard in two minutes"
        time.sleep(0.3)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill `ray start --block` and what it started, and nothing else: `ray stop` would end every cluster here."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (process, *below):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(below, timeout=30)
