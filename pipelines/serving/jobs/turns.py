"""Fair turns: owners whose jobs wait for a model share its replicas in proportion to their priorities.

Serve's own queue is first in, first out. So an ingress sends no more jobs than the replicas can work on, and keeps the
others here: one owner's thousand jobs then delay another owner's job by no more than those that were sent before it.

The order is that of start-time fair queuing (Goyal, Vin and Cheng, 1996). An owner's next job has a start tag: the tag
of the owner's job before it plus that job's work / priority, or the virtual time, if that is later. The job with the
lowest tag is next, and its tag becomes the virtual time. So while both wait, an owner with priority 4 gets four times
the work of one with priority 1; no owner waits for ever; and the first job of an owner who sent none lately is soon
next.
"""

import asyncio
import contextlib
import math
from collections import Counter, deque
from collections.abc import AsyncIterator
from typing import NamedTuple


class Waiting(NamedTuple):
    """A job that waits. cost: its work, divided by its owner's priority."""

    given: asyncio.Future[None]  # done when the job has a slot
    cost: float


class Turns:
    """Slots at the replicas of one model. Use it from one event loop."""

    def __init__(self, slots: int) -> None:
        """slots: number of jobs that may be sent at a time."""
        self.slots = slots
        self.others = 0  # open jobs of other ingresses, as last counted
        self.sent: Counter[str] = Counter()  # jobs at replicas, by owner
        self.waiting: dict[str, deque[Waiting]] = {}  # by owner
        self.starts: dict[str, float] = {}  # start tags of the owners' next jobs
        self.time = 0.0  # virtual time: start tag of the job that was sent last

    @contextlib.asynccontextmanager
    async def turn(
        self, owner: str, again: bool = False, work: float = 1.0, priority: float = 1.0
    ) -> AsyncIterator[None]:
        """Wait for a slot, and hold it while a block runs.

        again: wait before the owner's other jobs. work: of the job, in a unit that all jobs share. priority: above 0.
        """
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if owner not in self.waiting:
            self.waiting[owner], self.starts[owner] = deque(), max(self.time, self.starts.get(owner, 0.0))
        queue, waiting = self.waiting[owner], Waiting(given, work / priority)
        (queue.appendleft if again else queue.append)(waiting)
        self._give()
        try:
            await given
            yield
        finally:
            if given.done() and not given.cancelled():
                self.sent[owner] -= 1
            self._give()

    def _free(self) -> int:
        """Number of free slots; all processes together have `slots`, in proportion to their jobs."""
        sent = self.sent.total()
        own = sent + sum(map(len, self.waiting.values()))
        return math.ceil(self.slots * own / (own + self.others)) - sent if own else 0

    def _give(self) -> None:
        """Give free slots to those who wait."""
        self.sent = +self.sent
        free = self._free()
        while self.waiting and free > 0:
            owner = min(self.waiting, key=lambda name: (self.starts[name], self.waiting[name][0].cost, self.sent[name]))
            given, cost = self.waiting[owner].popleft()
            if not given.cancelled():
                given.set_result(None)
                self.sent[owner] += 1
                free -= 1
                self.time = self.starts[owner]
                self.starts[owner] += cost
            if not self.waiting[owner]:
                del self.waiting[owner]
        if not self.waiting:
            self.starts = {name: at for name, at in self.starts.items() if at > self.time and self.sent}
