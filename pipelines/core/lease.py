"""The lease of an output, so that one job at a time writes it: a file in the output that the job renews while it runs.

OUT/.writer.json names the process, its machine, and a count of renewals. A second job that finds it checks whether that
process is alive: on the same machine by asking the system, on another by waiting PATIENCE_S for the count to change. So
another job can follow a killed one at once on the same machine and soon on others. No clocks of two machines are
compared, and an outage of the storage does not count as a death. A job that was silent for so long that another took
its lease is interrupted at its next renewal. Until then it may still work, so `Lease.confirm` must precede whatever
deletes files or finishes the output.
"""

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from pipelines.core import storage
from pipelines.core.patience import limited

NAME = ".writer.json"
RENEW_S, PATIENCE_S = 10.0, 45.0
SETTLE_S = 2.0  # seconds after which two jobs that wrote the lease at the same moment see the same holder
SLOW_S = 5.0  # a read that takes longer has waited for a storage that was away


class LeaseError(RuntimeError):
    """Another job writes the output, or the output is gone."""


class Lease:
    """The lease of one output, held by this process. Use `hold` to get one."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.place = storage.join(output, NAME)
        self.record = {
            "token": uuid.uuid4().hex,
            "machine": machine(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": psutil.Process().create_time(),
            "renewals": 0,
        }
        self.released = threading.Event()
        self.lost: LeaseError | None = None  # why the job was interrupted

    def take(self) -> None:
        """Write the lease. Raises LeaseError while another job holds it."""
        holder = storage.read_json(self.place)
        if holder is not None and is_held(self.place, holder):
            raise LeaseError(refusal(self.output, holder))
        with locked(self.output) as is_locked:
            now = storage.read_json(self.place)
            if now is not None and now != holder:
                raise LeaseError(refusal(self.output, now))
            storage.put_json(self.place, self.record)
        if not is_locked:
            time.sleep(SETTLE_S)
            self.confirm()

    def confirm(self) -> None:
        """Raise LeaseError if another job has taken the lease, or the output is gone."""
        confirm(self.output, self.record["token"])

    def renew(self) -> None:
        """Renew the lease every RENEW_S until it is released. Storage errors are retried; a loss interrupts the job."""
        while not self.released.wait(RENEW_S):
            with limited(0), contextlib.suppress(OSError):
                try:
                    self.confirm()
                except LeaseError as error:
                    self.lost = error
                    interrupt()
                    return
                self.record["renewals"] += 1
                storage.put_json(self.place, self.record)

    def release(self) -> None:
        """Remove the lease, if it is still ours."""
        with limited(0), contextlib.suppress(OSError, LeaseError):
            self.confirm()
            storage.remove(self.place)


@contextlib.contextmanager
def hold(output: str) -> Iterator[Lease]:
    """Hold the lease of an output (absolute URI) while the block runs; call it in the main thread.

    Raises LeaseError while another job holds it, and when another job takes it: the block then ends as by Ctrl-C.
    """
    lease = Lease(output)
    lease.take()
    renewing = threading.Thread(target=lease.renew, name="lease", daemon=True)
    renewing.start()
    try:
        try:
            yield lease
        finally:
            lease.released.set()
            renewing.join()  # a renewal in progress would write the file again
            lease.release()
    except KeyboardInterrupt:
        if lease.lost is not None:
            raise lease.lost from None
        raise


def confirm(output: str, token: str) -> None:
    """Raise LeaseError unless an output (absolute URI) has the lease of this token. For the workers of a job."""
    holder = storage.read_json(storage.join(output, NAME))
    if holder is None:
        raise LeaseError(f"--output {output} was deleted or emptied while this job wrote to it")
    if holder["token"] != token:
        raise LeaseError(refusal(output, holder))


def interrupt() -> None:
    """Raise KeyboardInterrupt in the main thread by a signal, which also ends its waits; nothing without a handler.

    SIGTERM first, as `ray job stop` sends it: for SIGINT, Ray Train installs a handler that raises nothing.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.default_int_handler:
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            return


@contextlib.contextmanager
def locked(output: str) -> Iterator[bool]:
    """Lock the folder of an output against other jobs that begin; yields whether its file system could lock it."""
    if not storage.is_local(output):
        yield False
        return
    os.makedirs(output, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        yield _lock(folder)
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    for _ in range(50):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:  # another job holds it for milliseconds; 5 s are enough
            time.sleep(0.1)
        except OSError:  # NFS
            return False
    return False


def is_held(place: str, holder: dict[str, Any]) -> bool:
    """Whether the job that wrote this lease is alive. Where the system cannot tell, waits PATIENCE_S for a renewal."""
    if holder["machine"] == machine():
        try:
            process = psutil.Process(holder["process"])
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if abs(process.create_time() - holder["started"]) < 1.0:
                return True
        except psutil.NoSuchProcess:
            return False
        # The id may be another process's now; or the clock was set, from which the system computes the start time.
    print(f"waiting up to {PATIENCE_S:.0f} s to see whether a job on {holder['host']} still writes", file=sys.stderr)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(1.0)
        began = time.monotonic()
        now = storage.read_json(place)
        if now is None:
            return False
        if now != holder:
            return True
        if time.monotonic() - began > SLOW_S:  # the holder could not renew while the storage was away
            deadline = time.monotonic() + PATIENCE_S
    return False


def refusal(output: str, holder: dict[str, Any]) -> str:
    """Error message for a job whose output another job is writing."""
    return (
        f"--output {output} is being written by another job, process {holder['process']} on {holder['host']}; "
        "wait until it has ended, or give another --output"
    )


def machine() -> str:
    """Identify the scope in which process ids are unique: host, boot and container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not on Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
