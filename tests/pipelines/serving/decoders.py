"""A decoder that dies. In a module of its own, because a decoder's process has memory for few imports."""

import os
import signal
from typing import Any

from pipelines.serving.http.uploads import size_of


def size_or_death(deaths: str, *arguments: Any) -> Any:
    """Kill this process, as a machine without memory does, while the file `deaths` exists; append a byte to it."""
    if os.path.exists(deaths):
        with open(deaths, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return size_of(*arguments)
