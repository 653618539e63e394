"""One readable line of progress every few seconds, on stderr; stdout belongs to the summary.

Knows counting and the clock. Knows nothing of what is counted.
"""

import sys
import time
from collections.abc import Callable

_BAR = 20  # characters


def to_stderr(line: str) -> None:
    """Show a line to whoever watches the job."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts towards a total and says how fast it goes; `began` were done before, and do not count for the speed."""

    def __init__(
        self,
        job: str,
        unit: str,
        total: int,
        began: int = 0,
        every_s: float = 5.0,
        show: Callable[[str], object] = to_stderr,
    ) -> None:
        self.job, self.unit, self.total, self.began, self.every_s, self.show = job, unit, total, began, every_s, show
        self.count = began
        self.start = self.spoken = time.monotonic()

    def add(self, count: int, note: str = "") -> None:
        """`count` more are done; says so when the last line is old enough, or when all is done."""
        self.count += count
        now = time.monotonic()
        if now - self.spoken >= self.every_s or self.count >= self.total:
            self.spoken = now
            self.show(self.line(note))

    def rate(self) -> float:
        """Units per second since the start."""
        return (self.count - self.began) / max(1e-9, time.monotonic() - self.start)

    def line(self, note: str = "") -> str:
        """Such as "train  [####------]  40/100 steps  loss 0.412  3.1 steps/s  ETA 0:19"."""
        rate = self.rate()
        left = int((self.total - self.count) / rate) if rate else 0
        full = _BAR * self.count // max(1, self.total)
        parts = [self.job, f"[{'#' * full:-<{_BAR}}]", f"{self.count}/{self.total} {self.unit}", note]
        parts += [f"{rate:.1f} {self.unit}/s", f"ETA {left // 60}:{left % 60:02d}"]
        return "  ".join(part for part in parts if part)
