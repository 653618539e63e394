"""How many CPUs a container leaves to a process, and that its own machine is reached without a proxy."""

import contextlib
import getpass
import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from cinemo.machine import cores, keep_loopback_direct, settle_environment


def group(root: Path, place: str, **files: str) -> None:
    folder = root / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


@pytest.mark.parametrize(
    ("groups", "quota", "expected"),
    [
        ("0::/", {"": "100000 100000"}, 1),  # a container of version 2 sees its own group as the root
        ("0::/", {"": "max 100000"}, 64),
        ("0::/a/b", {"a/b": "max 100000", "a": "250000 100000"}, 3),  # that of a pod, above that of the container
        ("0::/a/b", {"a/b": "10000 100000", "a": "250000 100000"}, 1),
        ("1:cpu,cpuacct:/docker/c\n0::/", {"unified": "200000 100000"}, 2),
        ("4:memory:/x\n0::/gone", {}, 64),
    ],
)
def test_a_quota_of_version_2_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, quota: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for place, text in quota.items():
        group(tmp_path, place, cpu_max=text)
    assert cores(tmp_path) == expected


@pytest.mark.parametrize(("place", "quota", "expected"), [
    ("cpu,cpuacct", "150000", 2), ("cpu", "400000", 4), ("cpu/docker/c", "300000", 3), ("cpu", "-1", 64),
])  # fmt: skip
def test_a_quota_of_version_1_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/docker/c\n4:memory:/docker/c\n")
    group(tmp_path, place, **{"cpu_cfs_quota_us": quota + "\n", "cpu_cfs_period_us": "100000\n"})
    assert cores(tmp_path) == expected


def test_without_groups_it_is_what_the_process_may_run_on(tmp_path: Path) -> None:
    assert cores(tmp_path) == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_a_process_in_a_real_group_counts_its_quota() -> None:
    """Where this user may make one, as root of a machine with control groups of version 1 may."""
    place = Path("/sys/fs/cgroup/cpu/cinemo-test")
    try:
        place.mkdir(exist_ok=True)
        (place / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("no control group of version 1 can be made here")
    try:
        join = f"import os; open('{place}/cgroup.procs', 'w').write(str(os.getpid()))"
        command = [sys.executable, "-c", f"{join}; from cinemo.machine import cores; print(cores())"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "intranet.example, localhost")
    keep_loopback_direct()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet.example,localhost,127.0.0.1,::1"
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        answer = urllib.request.build_opener(urllib.request.ProxyHandler()).open(
            f"http://127.0.0.1:{server.server_port}/pyproject.toml", timeout=20
        )
        assert answer.status == 200
    monkeypatch.delenv("http_proxy")
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY")
    keep_loopback_direct()
    assert "no_proxy" not in os.environ  # without a proxy there is nothing to say


def test_a_user_whom_the_system_does_not_know_gets_a_name_and_a_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as of a container's uid that no passwd names
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settle_environment()
    assert Path.home().parent == tmp_path
    assert getpass.getuser() == f"uid{os.getuid()}"
    before = dict(os.environ)
    settle_environment()
    assert dict(os.environ) == before


def test_a_run_is_tracked_for_a_user_without_passwd_entry_and_home(tmp_path: Path) -> None:
    """As a real user of a namespace, where this machine lets one be made."""
    namespace = ["unshare", "--user", "--map-user=12345", "env", "-u", "HOME", "-u", "LOGNAME", "-u", "USER"]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespace can be made here")
    track = f"""
from pipelines.core import tracking
with tracking.start("x", "{tmp_path}/out", "sqlite:///{tmp_path}/mlflow.db", {{}}) as log:
    print(log.run_id)
"""
    command = [*namespace, sys.executable, "-c", track]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    assert len(result.stdout.strip()) == 32, result.stderr
