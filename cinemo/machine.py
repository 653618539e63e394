"""What a machine grants a process: CPUs within its container's quota, direct loopback addresses, a user and a home."""

import getpass
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def cores(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those it may run on, up to its container's quota.

    root: directory of proc/ and sys/. A quota of one and a half CPUs counts as two.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *(math.ceil(quota) for quota in quotas(root))]))


def quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in CPUs, of this process's control groups and their parents, versions 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux, or no control groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        own = PurePosixPath(path.lstrip("/"))
        for name in ("", "unified") if not controllers else {"cpu", controllers}:
            for group in (own, *own.parents):  # a container sees its own group as the root
                quota = read_quota(root / "sys/fs/cgroup" / name / group)
                if quota is not None:
                    yield quota


def read_quota(group: Path) -> float | None:
    """Read the quota of one control group, in CPUs; None if it has none."""
    try:
        if (group / "cpu.max").exists():  # version 2: "200000 100000" or "max 100000"
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def settle_environment() -> None:
    """Set environment variables that libraries need, for this process and those started later.

    Addresses of this machine bypass proxies. A user unknown to the system, such as a container's uid, gets a name and,
    without HOME, an empty home.
    """
    keep_loopback_direct()
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.mkdtemp(prefix="cinemo-home-")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def keep_loopback_direct() -> None:
    """Let addresses of this machine bypass proxies, in this process and those started later."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    given = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = list(dict.fromkeys([*filter(None, (host.strip() for host in given.split(","))), *LOOPBACK]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
