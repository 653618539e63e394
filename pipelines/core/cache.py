"""Copies of remote things on this node, made once for all its processes: CINEMO_CACHE, or ~/.cache/cinemo."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def once_per_node(kind: str, name: str, fill: Callable[[Path], Path]) -> Path:
    """Folder of this node's copy, below CINEMO_CACHE/kind; the first process makes it, and the others wait for it.

    name: identifies the content; a copy is never changed. fill: takes an empty folder, and returns the path of the copy
    in it, which gets the name when it is whole.
    """
    folder = Path(os.environ.get("CINEMO_CACHE") or Path.home() / ".cache" / "cinemo") / kind
    copy = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if copy.is_dir():
            return copy
        aside = folder / f".{name}.aside"
        shutil.rmtree(aside, ignore_errors=True)  # of a killed process: the lock is ours
        aside.mkdir()
        try:
            fill(aside).rename(copy)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return copy
