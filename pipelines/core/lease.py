"""The lease of an output, so that one job at a time writes it: a file in the output that the job renews while it runs.

OUT/.writer.json names the process, its machine, and a count of renewals. A second job that finds it checks whether that
process is alive: on the same machine by asking the system, on another by waiting PATIENCE_S for the count to change. So
another job can follow a killed one at once on the same machine and soon on others. No clocks of two machines are
compared, and an outage of the storage does not count as a death. Object storage has no exclusive create: of two jobs
that begin at the same moment the later write wins, and the other one stops at its next check. `Lease.confirm` must
precede whatever deletes files or finishes the output.
"""

import contextlib
import os
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
SLOW_S = 5.0  # a read that takes longer has waited for a storage that was away


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

    def take(self) -> None:
        """Write the lease. Raises RuntimeError while another job holds it."""
        holder = storage.read_json(self.place)
        if holder is not None and is_held(self.place, holder):
            raise RuntimeError(refusal(self.output, holder))
        storage.put_json(self.place, self.record)

    def confirm(self) -> None:
        """Raise RuntimeError if another job has taken the lease, or the output is gone."""
        holder = storage.read_json(self.place)
        if holder is None:
            raise RuntimeError(f"--output {self.output} was deleted or emptied while this job wrote to it")
        if holder["token"] != self.record["token"]:
            raise RuntimeError(refusal(self.output, holder))

    def renew(self) -> None:
        """Renew the lease every RENEW_S until it is released or lost. Storage errors are retried."""
        while not self.released.wait(RENEW_S):
            with limited(0), contextlib.suppress(OSError):
                try:
                    self.confirm()
                except RuntimeError:
                    return  # the job's next `confirm` raises
                self.record["renewals"] += 1
                storage.put_json(self.place, self.record)

    def release(self) -> None:
        """Remove the lease, if it is still ours."""
        with limited(0), contextlib.suppress(OSError, RuntimeError):
            self.confirm()
            storage.remove(self.place)


@contextlib.contextmanager
def hold(output: str) -> Iterator[Lease]:
    """Hold the lease of an output (absolute URI) while the block runs. Raises RuntimeError while another job does."""
    lease = Lease(output)
    lease.take()
    renewing = threading.Thread(target=lease.renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        lease.released.set()
        renewing.join()  # a renewal in progress would write the file again
        lease.release()


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
        # Another process may have got the id; or the clock was set, by which the system tells when a process began.
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
