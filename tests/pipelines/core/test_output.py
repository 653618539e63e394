"""An output: one writer, settings that do not mix, parts named by their rows, a last file while nothing is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core import lease, storage
from pipelines.core.output import Output, Reason, reject, write_part

MADE_WITH = {"job": "animate", "seed": 0, "vae_fingerprint": "aa"}
ROWS = pa.table({"id": ["a", "b"]})


def test_an_output_is_finished_until_a_job_begins_to_work_on_it(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), "dataset.json")
    output.claim(MADE_WITH)
    assert not output.is_finished
    (tmp_path / "out" / "dataset.json").write_text("{}")
    output.finish({"rows": 2})
    assert output.is_finished
    output.claim(MADE_WITH)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["settings.json"]


def test_an_output_takes_only_what_it_was_made_with(tmp_path: Path) -> None:
    output, flags = Output(str(tmp_path)), {"vae_fingerprint": "--model"}
    output.check(MADE_WITH)
    assert list(tmp_path.iterdir()) == []
    output.claim(MADE_WITH)
    output.check(MADE_WITH, flags)
    for change, sentence in (
        ({"seed": 1}, r"--seed: .* was made with seed 0, this job has 1; give the old value, or another --output"),
        ({"vae_fingerprint": "bb"}, r"--model: .* was made with vae_fingerprint 'aa', this job has 'bb'"),
        ({"job": "evaluate"}, r"--output .* was made by another job"),
        ({"new": 3}, r"--new: .* was made with new None, this job has 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            output.check(MADE_WITH | change, flags)


def test_the_same_rows_are_the_same_file_whoever_writes_them(tmp_path: Path) -> None:
    first = write_part(ROWS, str(tmp_path))
    stamp = Path(first).stat().st_mtime_ns
    assert write_part(ROWS, str(tmp_path)) == first
    assert Path(first).stat().st_mtime_ns == stamp
    assert write_part(ROWS.slice(1), str(tmp_path)) != first
    named = write_part(ROWS, str(tmp_path), named=b"a\nb", group=1)
    assert write_part(ROWS.slice(1), str(tmp_path), named=b"a\nb") == named
    assert pq.read_table(named).num_rows == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_reject_keeps_its_row_and_says_why() -> None:
    rejected = reject({"uri": "/a"}, "probe", Reason.TOO_SHORT, "3 frames")
    assert rejected == {"uri": "/a", "stage": "probe", "reason": "too_short", "message": "3 frames"}


HOLDER = """
import signal, sys, time
from pipelines.core import lease
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start what runs in the background
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ray_jobs/common.py does
lease.RENEW_S = 0.2
with lease.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_job_at_a_time_writes_an_output(tmp_path: Path) -> None:
    output = str(tmp_path)
    with lease.hold(output) as held:
        held.confirm()
        with pytest.raises(RuntimeError, match=f"is being written by another job, process {os.getpid()} on"):
            lease.Lease(output).take()
    assert list(tmp_path.iterdir()) == []
    other = subprocess.Popen([sys.executable, "-c", HOLDER, output], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=f"process {other.pid} on"):
            lease.Lease(output).take()
    finally:
        other.kill()
        other.wait()
    with lease.hold(output):  # at once: the process is gone
        pass


def test_a_killed_job_that_its_parent_never_waits_for_holds_nothing(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
        assert psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE
        with lease.hold(str(tmp_path)):
            pass
    finally:
        other.kill()
        other.wait()


def refuse_while_renewed(output: str, holder: dict[str, Any]) -> None:
    """Let another job hold an output and renew its lease once, and see that this one is refused."""
    place = storage.join(output, lease.NAME)
    storage.put_json(place, holder)
    renewal = threading.Timer(1.2, storage.put_json, (place, {**holder, "renewals": 1}))
    renewal.start()
    with pytest.raises(RuntimeError, match="is being written by another job"):
        lease.Lease(output).take()
    renewal.join()


def test_a_job_that_runs_holds_its_output_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells when a process began by the clock; a process may also have got the id of one that died."""
    monkeypatch.setattr(lease, "PATIENCE_S", 2.5)
    output = str(tmp_path)
    record = lease.Lease(output).record
    before = {**record, "started": record["started"] - 3600.0, "token": "theirs"}
    refuse_while_renewed(output, before)
    lease.Lease(output).take()  # no renewals: the id is another process's now


def test_a_job_on_another_machine_holds_an_output_while_it_renews(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 2.5)
    output = str(tmp_path)
    there = {**lease.Lease(output).record, "machine": "elsewhere", "token": "theirs"}
    place = storage.join(output, lease.NAME)
    refuse_while_renewed(output, there)
    with lease.hold(output) as held:  # no more renewals: it is dead
        storage.put_json(place, there)  # or was only slow, and takes it back
        with pytest.raises(RuntimeError, match="is being written by another job"):
            held.confirm()
    assert storage.read_json(place) == there  # a lease that is lost is not removed
    storage.remove(place)
    with pytest.raises(RuntimeError, match="was deleted or emptied"):
        held.confirm()


def test_a_wait_for_a_storage_does_not_count_as_silence_of_the_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 2.5)
    monkeypatch.setattr(lease, "SLOW_S", 2.0)
    output, read, slow = str(tmp_path), storage.read_json, [0.0, 3.0]
    there = {**lease.Lease(output).record, "machine": "elsewhere", "token": "theirs"}
    place = storage.join(output, lease.NAME)
    storage.put_json(place, there)

    def read_slowly(uri: str) -> Any:
        """The second time, the storage is away for longer than the patience."""
        time.sleep(slow.pop(0) if slow else 0.0)
        return read(uri)

    monkeypatch.setattr(storage, "read_json", read_slowly)
    renewal = threading.Timer(5.2, storage.put_json, (place, {**there, "renewals": 1}))
    renewal.start()
    with pytest.raises(RuntimeError, match="is being written by another job"):
        lease.Lease(output).take()


def test_a_lease_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    place = storage.join(str(tmp_path), lease.NAME)
    with lease.hold(str(tmp_path)):
        first = storage.read_json(place)["renewals"]
        deadline = time.monotonic() + 20
        while storage.read_json(place)["renewals"] < first + 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_job_that_lost_its_lease_stops_within_a_renewal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, theirs = storage.join(str(tmp_path), lease.NAME), lease.Lease(str(tmp_path)).record
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ray_jobs/common.py does

    def work() -> None:
        with lease.hold(str(tmp_path)):
            storage.put_json(place, theirs)
            time.sleep(30)

    began = time.monotonic()
    try:
        with pytest.raises(RuntimeError, match="is being written by another job"):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - began < 20
    assert storage.read_json(place) == theirs
    storage.remove(place)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        storage.put_json(place, theirs)
        _, said = other.communicate(timeout=60)
    finally:
        other.kill()
        other.wait()
    assert other.returncode == 1
    assert f"is being written by another job, process {os.getpid()} on" in said.splitlines()[-1]


def begin_at_once(output: str, jobs: int) -> int:
    """Let jobs take the lease of an output at the same moment; returns how many got it."""
    together = threading.Barrier(jobs)

    def begin(_: int) -> bool:
        own = lease.Lease(output)
        together.wait()
        try:
            own.take()
        except RuntimeError:
            return False
        return True

    with ThreadPoolExecutor(jobs) as pool:
        return sum(pool.map(begin, range(jobs)))


def test_of_jobs_that_begin_at_once_one_gets_the_output(tmp_path: Path, bucket: Any) -> None:
    dead = {**lease.Lease(str(tmp_path)).record, "process": 2**30}
    for number in range(20):
        output = str(tmp_path / str(number))
        if number % 2:
            storage.put_json(storage.join(output, lease.NAME), dead)
        assert begin_at_once(output, 4) == 1
    assert begin_at_once("s3://videos/out", 2) == 1
