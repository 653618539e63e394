"""A child process that hangs, dies or raises: the caller goes on, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from cinemo.video import VideoError
from pipelines.core.isolation import DeadChildError, Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox()
    yield box
    box.close()


def test_values_arrays_and_errors_come_back_as_they_are(sandbox: Sandbox) -> None:
    frames = np.arange(2 * 300 * 400 * 3, dtype=np.uint8).reshape(2, 300, 400, 3)
    np.testing.assert_array_equal(sandbox.call(np.flip, frames, 1, timeout=30), frames[:, ::-1])
    with pytest.raises(VideoError, match="no such thing") as caught:
        sandbox.call(raise_video_error, timeout=30)
    assert caught.value.reason == "missing"


def test_one_child_serves_many_calls(sandbox: Sandbox) -> None:
    assert len({sandbox.call(os.getpid, timeout=30) for _ in range(5)} - {os.getpid()}) == 1


def test_what_the_child_prints_does_not_reach_the_answers(sandbox: Sandbox) -> None:
    assert sandbox.call(os.write, 1, b"\x00\x01\x02\x03\n", timeout=30) == 5


def test_a_call_that_hangs_is_given_up_and_its_process_is_gone(sandbox: Sandbox) -> None:
    child = psutil.Process(sandbox.call(os.getpid, timeout=30))
    with pytest.raises(TimeoutError, match=r"longer than 0\.3 s"):
        sandbox.call(time.sleep, 60, timeout=0.3)
    assert not child.is_running()
    assert sandbox.call(abs, -2, timeout=30) == 2


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_call_that_kills_its_process_names_the_signal(sandbox: Sandbox, number: signal.Signals) -> None:
    with pytest.raises(DeadChildError, match=number.name):
        sandbox.call(signal.raise_signal, number, timeout=30)
    assert sandbox.call(abs, -3, timeout=30) == 3


def test_a_child_that_was_killed_while_idle_is_replaced_unseen(sandbox: Sandbox) -> None:
    first = sandbox.call(os.getpid, timeout=30)
    os.kill(first, signal.SIGKILL)
    time.sleep(0.1)
    assert sandbox.call(os.getpid, timeout=30) != first


def test_a_hanging_child_of_a_killed_parent_ends_by_itself() -> None:
    code = "import time; from pipelines.core.isolation import Sandbox; Sandbox().call(time.sleep, 99, timeout=0.5)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not (children := psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]


def raise_video_error() -> None:
    raise VideoError("missing", "no such thing")
