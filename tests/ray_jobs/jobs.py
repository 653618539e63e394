"""Run a job as a user does: a command in another working directory, with nothing of the repository on the path."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start(name: str, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    command = [sys.executable, str(ROOT / "ray_jobs" / f"{name}.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(job: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    """(exit code, the summary, {} without one, and stderr) of a job."""
    out, errors = job.communicate(timeout=400)
    lines = out.strip().splitlines()
    return job.returncode, json.loads(lines[-1]) if lines else {}, errors


def kill_when(job: "subprocess.Popen[str]", ready: Callable[[], object]) -> None:
    """SIGKILL the job's own process as soon as `ready` holds; the job must not have ended before."""
    deadline = time.monotonic() + 300
    while not ready():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "the job did not get that far in five minutes"
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.communicate()
