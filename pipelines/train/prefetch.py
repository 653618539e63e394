"""Micro-batches read and drawn ahead of the steps that take them: in their order, and a bounded number of them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipelines.dataset.reader import Clip
from pipelines.train.batch import Inputs

READERS = 8  # clips that a worker reads at once: reading mostly waits for storage


class MicroBatch(NamedTuple):
    """Clips, and the tensors that the loss takes of them."""

    clips: Sequence[Clip]
    inputs: Inputs


class Prefetch:
    """Iterator over the micro-batches of a plan.

    Threads read clips, and one thread draws inputs, micro-batch after micro-batch. An error of either is raised where
    the micro-batch is taken. No thread runs without `ahead`.
    """

    def __init__(
        self,
        plan: Iterator[tuple[int, Sequence[int]]],
        read: Callable[[int], Clip],
        draw: Callable[[int, Sequence[Clip]], Inputs],
        ahead: int,
    ) -> None:
        """plan: step and numbers of the clips of each micro-batch. draw: step and clips -> inputs.

        ahead: most micro-batches in memory besides the one taken last; 0: each is read when it is taken.
        """
        self.plan, self.read, self.draw, self.ahead = plan, read, draw, ahead
        self.pending: deque[Future[MicroBatch]] = deque()
        self.readers = ThreadPoolExecutor(READERS, "read")
        self.drawer = ThreadPoolExecutor(1, "draw")

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> MicroBatch:
        if not self.ahead:
            step, numbers = next(self.plan)
            return self._make(step, [self.read(number) for number in numbers])
        self._fill()
        if not self.pending:
            raise StopIteration
        made = self.pending.popleft().result()
        self._fill()  # reads go on while the step computes
        return made

    def close(self) -> None:
        """Stop reading; what was read ahead is dropped."""
        for pool in (self.readers, self.drawer):
            pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self) -> None:
        while len(self.pending) < self.ahead:
            planned = next(self.plan, None)
            if planned is None:
                return
            step, numbers = planned
            clips = [self.readers.submit(self.read, number) for number in numbers]
            self.pending.append(self.drawer.submit(self._draw, step, clips))

    def _draw(self, step: int, clips: Sequence[Future[Clip]]) -> MicroBatch:
        return self._make(step, [clip.result() for clip in clips])

    def _make(self, step: int, clips: Sequence[Clip]) -> MicroBatch:
        return MicroBatch(clips, self.draw(step, clips))
