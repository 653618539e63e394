"""A child process that hangs, dies or raises: the caller goes on, and nothing stays behind."""

import contextlib
import functools
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cinemo.video import VideoError
from pipelines.core import isolation, wire
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


def sleep_the_first_time(mark: Path) -> None:
    with contextlib.suppress(FileExistsError):
        mark.touch(exist_ok=False)
        time.sleep(1)


def test_an_answer_of_a_child_that_started_too_slowly_is_not_the_next_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Sandbox(functools.partial(sleep_the_first_time, tmp_path / "begun"))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(isolation, "_START_S", 0.2)
            with pytest.raises(DeadChildError, match=r"not be started.* 0\.2 s"):
                box.call(abs, -1, timeout=30)
        assert box.call(abs, -2, timeout=30) == 2
        assert box.call(abs, -3, timeout=30) == 3
    finally:
        box.close()


def test_an_answer_to_an_interrupted_call_is_not_the_next_calls(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(isolation.select, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sandbox.call(abs, -1, timeout=30)
    assert sandbox.call(abs, -2, timeout=30) == 2


def interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


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


class ForeignError(OSError):
    """An exception of a module that answers may not name."""


def fail_abroad() -> None:
    raise ForeignError("no route")


def test_an_exception_of_another_library_comes_back_as_its_known_base(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="ForeignError: no route") as caught:
        sandbox.call(fail_abroad, timeout=30)
    assert type(caught.value) is OSError


class Evil:
    """Touches a file wherever its pickle is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def answer_with_a_pickle(path: str) -> None:
    """Write a pickle to all pipes, as a decoder that was taken over could."""
    data = pickle.dumps((False, Evil(path)))
    message = struct.pack("<IQ", 1, len(data)) + data
    for descriptor in range(3, 16):
        with contextlib.suppress(OSError):
            os.write(descriptor, message)
    os._exit(0)


def test_an_answer_is_never_unpickled(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(DeadChildError, match="no valid answer"):
        sandbox.call(answer_with_a_pickle, str(tmp_path / "ran"), timeout=30)
    assert not (tmp_path / "ran").exists()
    assert sandbox.call(abs, -4, timeout=30) == 4


def test_answers_name_no_class_but_known_ones_and_have_a_bounded_length() -> None:
    for name in ("subprocess:Popen", "builtins:SystemExit", "pipelines.core.isolation:os", "nowhere:ValueError"):
        with pytest.raises(ValueError, match="no Exception that a child may return"):
            wire.unpack([bytearray(json.dumps({"error": [name, "true"]}).encode())])
    with pytest.raises(ValueError, match="objects"):
        wire.unpack([bytearray(b'{"array": 0, "dtype": "O", "shape": [1]}'), bytearray(8)])
    with pytest.raises(ValueError, match="not an answer"):
        wire.unpack([bytearray(b"[" * 100_000)])
    value = {"a": (1, 2.5, None, "x"), "b": [b"bytes", np.zeros((0, 3))], "c": np.float32(0.5)}
    again = wire.unpack([bytearray(part) for part in wire.pack(value)])
    assert again["a"] == value["a"]
    assert again["b"][0] == b"bytes"
    assert again["b"][1].shape == (0, 3)


def test_a_child_has_no_secrets_and_storage_only_for_remote_files(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"CINEMO_API_KEYS": "k", "PGPASSWORD": "p", "RAY_AUTH_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    box = Sandbox()
    try:
        assert not set(secrets) & set(box.call(variables, "/a/video.mp4", timeout=30))
        assert set(secrets) & set(box.call(variables, "s3://bucket/a.mp4", timeout=30)) == {"AWS_SECRET_ACCESS_KEY"}
    finally:
        box.close()


def variables(uri: str) -> list[str]:
    return list(os.environ)


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from /proc")
def test_a_call_that_takes_too_much_memory_is_one_error_and_no_core_is_left() -> None:
    box = Sandbox(memory=256 << 20)
    try:
        assert len(box.call(bytes, 64 << 20, timeout=30)) == 64 << 20
        with pytest.raises(MemoryError):
            box.call(bytes, 512 << 20, timeout=30)
        assert box.call(resource.getrlimit, resource.RLIMIT_CORE, timeout=30) == (0, 0)
    finally:
        box.close()


def test_a_file_that_takes_too_much_memory_is_a_reject() -> None:
    run = isolation.guard(int, 30, "--clip-timeout", VideoError)
    with pytest.raises(VideoError, match="more than 6 GB of memory") as caught:
        run(bytes, 1 << 40)
    assert caught.value.reason == "too_large"
