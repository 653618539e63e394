"""This process's memory: what the C library does with freed blocks, the most it has held, what it can still have.

Knows glibc and Linux's /proc; nothing about tensors.
"""

import ctypes
import resource
import sys
from pathlib import Path

import psutil

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
_KEEP = (1 << 31) - 1  # bytes; the largest that mallopt takes
_GIVE_BACK = 1 << 20  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; returns whether its C library can.

    By default glibc gives large blocks back to the system at once and gets them anew, zeroed and page by page: a sixth
    of the time of a small VAE on a CPU. The process then stays as large as it ever was.
    """
    # In this order: where the first is refused, as old versions do, the second alone would do harm.
    return _mallopt(_MMAP_THRESHOLD, _KEEP) and _mallopt(_TRIM_THRESHOLD, _KEEP)


def give_back_freed_memory() -> bool:
    """Let this process give every block from a mebibyte on back at once; returns whether its C library can.

    By default glibc raises that limit to 32 MiB as blocks are freed, and what it keeps lies in pieces. For one large
    model that barely fits: the full-size U-Net in float32 at 320 x 512 pixels then needs 0.3 GB less.
    """
    return _mallopt(_MMAP_THRESHOLD, _GIVE_BACK)


def _mallopt(name: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(name, value))


def free_memory() -> int:
    """Bytes that this program can still have, about: without swapping, and inside its control group."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (most := (group / "memory.max").read_text().strip()) != "max":
        facts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(facts["inactive_file"])  # files leave when asked
        free = min(free, int(most) - used)
    return max(0, free)


def peak_rss() -> int:
    """The largest resident size that this program has had, in bytes."""
    if sys.platform != "linux":  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage's: a program started by a larger one has its parent's there.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
