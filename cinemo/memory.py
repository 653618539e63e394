"""What the C library does with freed memory. Knows glibc; does nothing elsewhere, and nothing about tensors."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
_KEEP = (1 << 31) - 1  # bytes; the largest that mallopt takes


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; returns whether its C library can.

    By default glibc gives large blocks back to the system at once and gets them anew, zeroed and page by page: a sixth
    of the time of a small VAE on a CPU. The process then stays as large as it ever was.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # In this order: where the first is refused, as old versions do, the second alone would do harm.
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _KEEP)) and bool(mallopt(_TRIM_THRESHOLD, _KEEP))
