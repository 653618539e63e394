"""Fair turns: of the owners whose jobs wait for a model, the one with the fewest jobs at its replicas is next.

Serve's own queue is first in, first out. So an ingress sends no more jobs than the replicas can work on, and keeps the
others here: one owner's thousand jobs then delay another owner's job by no more than those that were sent before it.
"""

import asyncio
import contextlib
import itertools
import math
from collections import Counter, deque
from collections.abc import AsyncIterator


class Turns:
    """Slots at the replicas of one model. Use it from one event loop."""

    def __init__(self, slots: int) -> None:
        """slots: number of jobs that may be sent at a time."""
        self.slots = slots
        self.others = 0  # open jobs of other ingresses, as last counted
        self.sent: Counter[str] = Counter()  # jobs at replicas, by owner
        self.waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by owner
        self.last_turn: dict[str, int] = {}  # of owners that wait or have jobs at replicas
        self.numbers = itertools.count()

    @contextlib.asynccontextmanager
    async def turn(self, owner: str, again: bool = False) -> AsyncIterator[None]:
        """Wait for a slot, and hold it for the time of a block. again: before the owner's other jobs."""
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self.waiting.setdefault(owner, deque())
        (queue.appendleft if again else queue.append)(given)
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
            owner = min(self.waiting, key=lambda name: (self.sent[name], self.last_turn.get(name, -1)))
            given = self.waiting[owner].popleft()
            if not self.waiting[owner]:
                del self.waiting[owner]
            if not given.cancelled():
                given.set_result(None)
                self.sent[owner] += 1
                free -= 1
                self.last_turn[owner] = next(self.numbers)
        if not self.waiting:
            self.last_turn = {name: at for name, at in self.last_turn.items() if name in self.sent}
