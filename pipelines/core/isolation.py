"""Run a function in a child process that may hang or die, without the caller hanging or dying with it.

Decoders are C code that reads files from strangers: some never return, some crash their process, and some might run
code that a file contains. So a child gets neither the secrets in this process's environment nor more memory than
decoding needs, and its answers are not unpickled (wire.py).
"""

import contextlib
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.core import patience, wire

ATTEMPTS = 2  # of a call that kills its child: the first time, the machine may have been at fault
Run = Callable[..., Any]  # (function, *arguments) -> what the function returns or raises

MEMORY = 6 << 30  # bytes that calls may take: enough for the largest video or picture that is accepted

_GRACE_S = 3.0  # for a late child to answer that it waits for a storage
_START_S = 300.0  # for a child to start and import its function: a cold node's disk is slow
_MAX_ANSWER, _MAX_PARTS = 4 << 30, 1000  # limits of a message: bytes; parts, of which each array is one
# First letters of the variables that a child gets; those of storage only if it is to open a remote file.
_VARIABLES = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_", "MALLOC_"),
)
_OF_STORAGE = (
    *("AWS_", "GOOGLE_", "GCLOUD_", "CLOUDSDK_", "GCS", "AZURE_", "FSSPEC_", "HF_", "HADOOP_", "CINEMO_PRIVATE_HOSTS"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("SSL_CERT_", "REQUESTS_CA_BUNDLE"),
)


class DeadChildError(RuntimeError):
    """The child ended in the middle of a call; the message names the signal or exit code."""


class Sandbox:
    """One child process: started when it is first needed, and again after it hung or died.

    It ends with its parent: an idle child when its input closes, a hanging one by its own alarm.
    """

    def __init__(self, warm_up: Callable[[], object] = int, memory: int = MEMORY) -> None:
        """warm_up: run first by a new child, outside any call's timeout; to load and compile what calls will need.

        memory: bytes of address space that a child may take in addition to what it has after warm_up.
        """
        self._warm_up, self._memory = warm_up, memory
        self._child: subprocess.Popen[bytes] | None = None
        self._reaches_storage = False
        self._number = 0  # of the newest request; a child repeats it when it begins

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float) -> Any:
        """Call function(*arguments) in the child; returns or raises as it does. The child must be able to import it.

        timeout: seconds, without starting the child and importing. Raises TimeoutError when the call takes longer,
        StorageError when it is then waiting for a storage, MemoryError when it needs more than a child may take, and
        DeadChildError when it ends its process, gives no valid answer, or cannot be started.
        """
        if not self._reaches_storage and any(isinstance(one, str) and "://" in one for one in arguments):
            self.close()
            self._reaches_storage = True
        self._number += 1
        request = pickle.dumps((self._number, function, arguments, timeout))
        try:
            output = self._begin(request)
            deadline = time.monotonic() + timeout
            late = not select.select([output], [], [], timeout)[0]
            if late:
                assert self._child is not None
                self._child.send_signal(signal.SIGUSR1)  # if it waits for a storage, it says so
            raised, value = wire.unpack(_receive(output, deadline + late * _GRACE_S))
            if late and not isinstance(value, patience.StorageError):
                raise TimeoutError
        except TimeoutError:
            self.close()
            raise TimeoutError(f"took longer than {timeout:g} s") from None
        except EOFError:
            raise DeadChildError(_cause(self.close())) from None
        except (TypeError, ValueError) as error:
            self.close()
            raise DeadChildError(f"gave no valid answer ({error})") from None
        except BaseException:  # a KeyboardInterrupt too: the next call would read the answer to this one
            self.close()
            raise
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
            requests = [request] if self._child else [pickle.dumps((self._warm_up, self._memory)), request]
            self._child = self._child or _start(self._reaches_storage)
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            output = self._child.stdout.fileno()
            try:
                for message in requests:
                    _send(self._child.stdin.fileno(), [message])
                if (begun := wire.unpack(_receive(output, time.monotonic() + _START_S))) != self._number:
                    raise ValueError(f"it answers request {begun}, not {self._number}")
                return output
            except (EOFError, BrokenPipeError):
                code = self.close()
            except TimeoutError:
                raise DeadChildError(f"could not be started: took longer than {_START_S:g} s") from None
        raise DeadChildError(f"could not be started: {_cause(code)}")


def guard(warm_up: Callable[[], object], timeout: float, flag: str, fault: Callable[[str, str], Exception]) -> Run:
    """Return a `run` that calls functions in a child of this process: a call that hangs or crashes raises a fault here.

    timeout: seconds for one call; flag: the option that sets it. fault: (reason, message) -> exception to raise, where
    the reason is "timeout", "crashed" or "too_large". After a StorageError in the child, the call is retried.
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
            except MemoryError:
                raise fault("too_large", f"takes more than {MEMORY >> 30} GB of memory to decode") from None
        raise fault("crashed", f"the decoder crashed {ATTEMPTS} times: {last}")

    return lambda function, *arguments: patience.retried("", attempt, function, *arguments)


def _start(reaches_storage: bool) -> "subprocess.Popen[bytes]":
    given = _VARIABLES + _OF_STORAGE * reaches_storage
    environment = {name: value for name, value in os.environ.items() if name.startswith(given)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    environment[patience.VARIABLE] = "0"  # the child does not retry: waiting would count against its timeout
    command = [sys.executable, "-m", "pipelines.core.isolation"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment)


def _cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _serve() -> None:
    """Run the child: warm up, then serve requests from stdin until it closes.

    Each gets two answers: its number when it begins, then what the function returns or raises.
    """
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    signal.signal(signal.SIGUSR1, _stop_waiting)
    (first,) = _receive(requests, deadline=None)
    warm_up, memory = pickle.loads(first)
    warm_up()
    _limit(memory)
    while True:
        try:
            (request,) = _receive(requests, deadline=None)
            number, function, arguments, timeout = pickle.loads(request)
        except EOFError:
            return
        _send(answers, wire.pack(number))
        signal.setitimer(signal.ITIMER_REAL, timeout + 5)  # its default action ends even C code, if the parent is gone
        try:
            answer = (False, function(*arguments))
        except Exception as error:
            answer = (True, error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, wire.pack(answer))


def _stop_waiting(*_: Any) -> None:
    """Handle the signal that a call's time is over: raise if it waits for a storage. If it hangs, it is killed."""
    if patience.is_waiting():
        raise TimeoutError("no answer within the time limit of a call")


def _limit(memory: int) -> None:
    """Limit this process to so many more bytes, and to no core file, which would contain what it has read."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, taken + memory))


def _send(descriptor: int, parts: list[Any]) -> None:
    lengths = [len(part) for part in parts]
    for data in (struct.pack(f"<I{len(parts)}Q", len(parts), *lengths), *parts):
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]


def _receive(descriptor: int, deadline: float | None) -> list[bytearray]:
    """Read the parts of the next message. Raises ValueError when it is too long.

    Raises EOFError when the other side is gone, TimeoutError past the deadline (monotonic).
    """
    (count,) = struct.unpack("<I", _read(descriptor, 4, deadline))
    if count > _MAX_PARTS:
        raise ValueError(f"{count} parts")
    lengths = struct.unpack(f"<{count}Q", _read(descriptor, 8 * count, deadline))
    if sum(lengths) > _MAX_ANSWER:
        raise ValueError(f"{sum(lengths)} bytes")
    return [_read(descriptor, length, deadline) for length in lengths]


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
