"""What the machine lets a process have: CPUs, its own addresses, a home.

Knows Linux's control groups and environment variables; nothing about what is computed.
"""

import getpass
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def cores(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those that it may run on, and no more than its container's quota comes to.

    root: where proc/ and sys/ are. A quota of one and a half CPUs counts as two.
    """
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *(math.ceil(quota) for quota in quotas(root))]))


def quotas(root: Path) -> Iterator[float]:
    """Quotas, in CPUs, of the control groups that this process is in and of those above them, version 2 and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux, or no groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        own = PurePosixPath(path.lstrip("/"))
        for name in ("", "unified") if not controllers else {"cpu", controllers}:
            for group in (own, *own.parents):  # in a container the root of what is seen is its own group
                quota = read_quota(root / "sys/fs/cgroup" / name / group)
                if quota is not None:
                    yield quota


def read_quota(group: Path) -> float | None:
    """The quota of one control group in CPUs; None where it has none."""
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
    """Give libraries what they ask an environment for and odd ones lack, here and in processes that are started later.

    Addresses of this machine go to no proxy. A user whom the system does not know, such as a container's uid, gets a
    name and, without HOME, a home that is empty.
    """
    keep_loopback_direct()
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = tempfile.mkdtemp(prefix="cinemo-home-")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def keep_loopback_direct() -> None:
    """Ask no proxy for addresses of this machine, here and in processes that are started from now on."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    given = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY"))
    hosts = list(dict.fromkeys([*filter(None, (host.strip() for host in given.split(","))), *LOOPBACK]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
