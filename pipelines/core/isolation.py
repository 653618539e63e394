"""Run a function in a child process that may hang or die, without the caller hanging or dying with it.

Decoders are C code that reads files from strangers: some never return, some crash their process. Values are pickled,
and arrays are sent after the pickle as raw bytes.
"""

import contextlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from pipelines.core import patience

ATTEMPTS = 2  # of a call that kills its child: the first time, the machine may have been at fault
Run = Callable[..., Any]  # (function, *arguments) -> what the function returns or raises

_GRACE_S = 3.0  # for a child to answer that it waits for a storage
_START_S = 300.0  # for a child to start and import its function: a cold node's disk is slow


class DeadChildError(RuntimeError):
    """The child ended in the middle of a call; the message names the signal or exit code."""


class Sandbox:
    """One child process: started when it is first needed, and again after it hung or died.

    It ends with its parent: an idle child when its input closes, a hanging one by its own alarm.
    """

    def __init__(self, warm_up: Callable[[], object] = int) -> None:
        """warm_up: run first by a new child, outside any call's timeout; to load and compile what calls will need."""
        self._warm_up = warm_up
        self._child: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        """Call function(*arguments) in the child; returns or raises as it does. The child must be able to import it.

        timeout: seconds, without starting the child and importing. Raises TimeoutError when the call takes longer,
        StorageError when it waits for a storage all the while, and DeadChildError when it ends its process.
        """
        output = self._begin(pickle.dumps((function, arguments, timeout)))
        deadline = time.monotonic() + timeout
        late = not select.select([output], [], [], timeout)[0]
        if late:
            assert self._child is not None
            self._child.send_signal(signal.SIGUSR1)  # if it waits for a storage, it says so
        try:
            raised, value = _receive(output, deadline + late * _GRACE_S)
            if late and not isinstance(value, patience.StorageError):
                raise TimeoutError
        except TimeoutError:
            self.close()
            raise TimeoutError(f"took longer than {timeout:g} s") from None
        except EOFError:
            raise DeadChildError(_cause(self.close())) from None
        if raised:
            raise value
        return value

    def close(self) -> int:
        """End the child; returns its exit code, negative for a signal."""
        child, self._child = self._child, None
        if child is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.2)  # if it died by itself, get its own exit code instead of our signal's
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()
        return code

    def _begin(self, request: bytes) -> int:
        """Make a child start on a request; returns the file descriptor of its answers.

        An idle child may have been killed meanwhile, perhaps because memory ran out: then a second one is tried.
        """
        for _ in range(2):
            requests = [request] if self._child else [pickle.dumps(self._warm_up), request]
            self._child = self._child or _start()
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            output = self._child.stdout.fileno()
            try:
                for message in requests:
                    _send(self._child.stdin.fileno(), [message])
                _receive(output, time.monotonic() + _START_S)
                return output
            except (EOFError, BrokenPipeError):
                code = self.close()
        raise DeadChildError(f"could not be started: {_cause(code)}")


def guard(warm_up: Callable[[], object], timeout: float, flag: str, fault: Callable[[str, str], Exception]) -> Run:
    """Return a `run` that calls functions in a child of this process: a call that hangs or crashes raises a fault here.

    timeout: seconds for one call; flag: the option that sets it. fault: (reason, message) -> exception to raise, where
    the reason is "timeout" or "crashed". A StorageError of the child is retried.
    """
    sandbox = Sandbox(warm_up)

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return sandbox.call(function, *arguments, timeout=timeout)
            except TimeoutError as error:
                raise fault("timeout", f"{error}; raise {flag} if the storage is slow") from None
            except DeadChildError as error:
                last = error
        raise fault("crashed", f"the decoder crashed {ATTEMPTS} times: {last}")

    return lambda function, *arguments: patience.retried("", attempt, function, *arguments)


def _start() -> "subprocess.Popen[bytes]":
    paths = os.pathsep.join(filter(None, sys.path))
    # The child does not wait for a storage, which would count as time of its call.
    environment = {**os.environ, "PYTHONPATH": paths, patience.VARIABLE: "0"}
    command = [sys.executable, "-m", "pipelines.core.isolation"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve() -> None:
    """Run the child: warm up, then serve requests from stdin until it closes, with two answers each (begun; done)."""
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    signal.signal(signal.SIGUSR1, _stop_waiting)
    _receive(requests, deadline=None)()
    while True:
        try:
            function, arguments, timeout = _receive(requests, deadline=None)
        except EOFError:
            return
        _send(answers, _packed(None))
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)  # its default action ends even C code, if the parent is gone
        try:
            answer = (False, function(*arguments))
        except Exception as error:
            answer = (True, error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, _packed(answer))


def _stop_waiting(*_: Any) -> None:
    """Handle the signal that a call's time is over: fail if it waits for a storage. A decoder that hangs is killed."""
    if patience.is_waiting():
        raise TimeoutError("no answer within the time limit of a call")


def _packed(value: Any) -> list[Any]:
    """Pickle a value: the pickle, then the buffers of its arrays."""
    buffers: list[Any] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
    return [data, *buffers]


def _send(descriptor: int, parts: list[Any]) -> None:
    lengths = [len(part) for part in parts]
    for data in (struct.pack(f"<I{len(parts)}Q", len(parts), *lengths), *parts):
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


def _receive(descriptor: int, deadline: float | None) -> Any:
    """Read the next value. Raises EOFError when the other side is gone, TimeoutError past the deadline (monotonic)."""
    (count,) = struct.unpack("<I", _read(descriptor, 4, deadline))
    lengths = struct.unpack(f"<{count}Q", _read(descriptor, 8 * count, deadline))
    data, *buffers = [_read(descriptor, length, deadline) for length in lengths]
    return pickle.loads(data, buffers=buffers)


def _read(descriptor: int, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([descriptor], [], [], timeout)[0]:
            raise TimeoutError
        count = os.readv(descriptor, [view])
        if not count:
            raise EOFError
        view = view[count:]
    return data


if __name__ == "__main__":
    _serve()
