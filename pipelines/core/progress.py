"""Progress of a job: one readable line every few seconds, on stderr, because stdout is for the summary."""

import sys
import time
from collections.abc import Callable

_BAR = 20  # characters


def to_stderr(line: str) -> None:
    """Show a line to the person who watches the job."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts units towards a total, and shows a line every `every_s` seconds.

    began: units that were done before; they do not count towards the speed. show: takes a line.
    """

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
        self.start = self.last_shown = time.monotonic()

    def add(self, count: int, note: str = "") -> None:
        """Add finished units; shows a line when the last one is `every_s` seconds old, or when all units are done."""
        self.count += count
        now = time.monotonic()
        if now - self.last_shown >= self.every_s or self.count >= self.total:
            self.last_shown = now
            self.show(self.line(note))

    def rate(self) -> float:
        """Units per second since the start."""
        return (self.count - self.began) / max(1e-9, time.monotonic() - self.start)

    def line(self, note: str = "") -> str:
        """Format the progress: "train  [####------]  40/100 steps  loss 0.412  3.1 steps/s  ETA 0:19"."""
        rate = self.rate()
        left = int((self.total - self.count) / rate) if rate else 0
        full = _BAR * self.count // max(1, self.total)
        parts = [self.job, f"[{'#' * full:-<{_BAR}}]", f"{self.count}/{self.total} {self.unit}", note]
        parts += [f"{rate:.1f} {self.unit}/s", f"ETA {left // 60}:{left % 60:02d}"]
        return "  ".join(part for part in parts if part)
