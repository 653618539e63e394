"""The right to write an output, which one job at a time has: a file in it that the job renews while it lives.

OUT/.writer.json names the process, its machine, and a number of renewals. A second job that finds it asks whether that
process lives: on the same machine the system says so; on another the number has to change within PATIENCE_S. So a job
that was killed is followed at once on its machine, and soon on another, and no two clocks are compared. Object storage
has no exclusive create, so of two jobs that begin in the same moment the later write wins, and the other one stops at
its next look: `Lease.confirm` comes before everything that deletes or finishes.
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

NAME = ".writer.json"
RENEW_S, PATIENCE_S = 10.0, 45.0


class Lease:
    """The lease of one output, held by this process. `hold` gives one."""

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
        found = storage.read_json(self.place)
        if found is not None and is_held(self.place, found):
            raise RuntimeError(refusal(self.output, found))
        storage.put_json(self.place, self.record)

    def confirm(self) -> None:
        """Raise RuntimeError when the lease is another job's by now."""
        found = storage.read_json(self.place)
        if found is None:
            raise RuntimeError(f"--output {self.output} was deleted or emptied while this job wrote to it")
        if found["token"] != self.record["token"]:
            raise RuntimeError(refusal(self.output, found))

    def renew(self) -> None:
        """Renew the lease every RENEW_S until it is released or lost. A storage that is away is asked again."""
        while not self.released.wait(RENEW_S):
            with contextlib.suppress(OSError):
                try:
                    self.confirm()
                except RuntimeError:
                    return  # the job hears of it at its own next look
                self.record["renewals"] += 1
                storage.put_json(self.place, self.record)

    def release(self) -> None:
        """Remove the lease, if it is still ours."""
        with contextlib.suppress(OSError, RuntimeError):
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
        renewing.join()  # or a renewal under way would write the file again
        lease.release()


def is_held(place: str, found: dict[str, Any]) -> bool:
    """Whether the job that wrote this lease still lives. Waits PATIENCE_S for a sign of one on another machine."""
    if found["machine"] == machine():
        try:
            return abs(psutil.Process(found["process"]).create_time() - found["started"]) < 1.0
        except psutil.NoSuchProcess:
            return False
    print(f"waiting up to {PATIENCE_S:.0f} s to see whether a job on {found['host']} still writes", file=sys.stderr)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(1.0)
        now = storage.read_json(place)
        if now is None:
            return False
        if now != found:
            return True
    return False


def refusal(output: str, found: dict[str, Any]) -> str:
    """The sentence for a job that meets the lease of another."""
    return (
        f"--output {output} is being written by another job, process {found['process']} on {found['host']}; "
        "wait until it has ended, or give another --output"
    )


def machine() -> str:
    """What tells apart the places where process numbers mean the same: the host, since its start, and the container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not on Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)
