"""Run a job as a user does: a command in another working directory, with nothing of the repository on the path."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from pipelines.prepare import clips
from pipelines.prepare.config import SamplingConfig
from ray_jobs import common

ROOT = Path(__file__).parents[2]


def wanted_clips(videos: Path, clips_per_video: int) -> set[str]:
    """Ids of the clips of 4 frames of 64 x 64 that a preparation takes of a folder, without preparing any."""
    sampling = SamplingConfig(num_frames=4, clips_per_video=clips_per_video)
    rows = [{"uri": str(path), "caption": "", "fault": None} for path in videos.glob("*.mp4")]
    return {span["clip_id"] for row in rows for span in clips.make_spans(row, sampling, [(64, 64)])}


def refuse(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    job: ModuleType,
    folder: Path,
    *arguments: str,
) -> str:
    """Run a job of ray_jobs/ in this process, with bad input, in `folder`; returns its sentence.

    It has to end as bad usage does, before Ray: exit code 2, one line on stderr and no more, nothing written.
    """

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def connect(*_: object) -> None:
        pytest.fail(f"{arguments} were accepted")

    before = files()
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.chdir(folder)
        patched.delenv("RAY_ADDRESS", raising=False)
        patched.setattr("sys.argv", [str(job.__file__), *arguments])
        patched.setattr(common, "connect", connect)
        patched.setattr(common, "disconnect", lambda: None)  # or it would stop Ray of the tests after this one
        code = job.main()
    out, errors = capsys.readouterr()
    assert (code, out) == (common.BAD_USAGE, "")
    assert errors.startswith(f"{job.__name__.rpartition('.')[2]}.py: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    assert files() == before
    return errors


def start(name: str, folder: Path, *arguments: str, address: str | None = None) -> "subprocess.Popen[str]":
    """A job on a cluster of its own, or on the one at `address`."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {"RAY_ADDRESS": address} if address else {}
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
    wait_until(job, ready)
    kill(job)


def saved_states(run: Path) -> list[dict[str, Any]]:
    """state.json of the checkpoints in a run's folder; one that is being copied or deleted right now is left out."""
    states = []
    for path in run.glob("checkpoints/step_*/state.json"):
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            states.append(json.loads(path.read_text()))
    return states


def wait_until(job: "subprocess.Popen[str]", ready: Callable[[], object]) -> None:
    """Return as soon as `ready` holds; the job must not end before."""
    deadline = time.monotonic() + 300
    while not ready():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, "the job did not get that far in five minutes"
        time.sleep(0.02)


def kill(job: "subprocess.Popen[str]") -> None:
    """SIGKILL the job's own process, the driver."""
    job.send_signal(signal.SIGKILL)
    job.communicate()


def kill_node(job: "subprocess.Popen[str]") -> None:
    """SIGKILL the driver and every process of its Ray node at once."""
    node = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in node:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    job.communicate()
    psutil.wait_procs(node, timeout=30)


def kill_a_trainer(parent: "subprocess.Popen[str]") -> None:
    """SIGKILL one of the training processes that a job, or a cluster, has started."""
    processes = psutil.Process(parent.pid).children(recursive=True)
    [process, *_] = [process for process in processes if "TrainWorker" in process.name()]
    process.kill()


def kill_workers(job: "subprocess.Popen[str]", times: int, moments: random.Random) -> int:
    """SIGKILL processes that run tasks and actors of the job, or decode for them: which ones and when is random.

    Waits for there to be one each time; returns how many died, fewer than `times` when the job ends before. A worker
    loses one decoder at most: a video that takes two decoders along is a reject, and rightly so.
    """
    deaths = 0
    lost_a_decoder: set[int] = set()
    while deaths < times and job.poll() is None:
        workers = []
        for process in psutil.Process(job.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                decodes = "pipelines.core.isolation" in line and process.ppid() not in lost_a_decoder
                if decodes or line.startswith(("ray::MapWorker", "ray::MapBatches")):
                    workers.append((process, process.ppid() if decodes else None))
        if workers:
            chosen, parent = moments.choice(workers)
            with contextlib.suppress(psutil.NoSuchProcess):
                chosen.send_signal(signal.SIGKILL)
                deaths += 1
                lost_a_decoder |= set() if parent is None else {parent}
            time.sleep(2 * moments.random())
        time.sleep(0.02)
    return deaths
