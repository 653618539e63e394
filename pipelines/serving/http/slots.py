"""Limit the requests that are worked on at a time, of all owners and of each; the others wait, their bodies unread."""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator

from pipelines.serving.http.api_keys import EVERYONE


class Slots:
    """Slots for requests, with a limit for each owner. Use it from one event loop."""

    def __init__(self, most: int, most_of_owner: int) -> None:
        """most_of_owner: where keys are set; without keys, everyone may use all."""
        self.most, self.most_of_owner = most, most_of_owner
        self.free = asyncio.Semaphore(most)
        self.owners: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def hold(self, owner: str) -> AsyncIterator[None]:
        """Wait for a slot, and hold it while a block runs."""
        most = self.most if owner == EVERYONE else self.most_of_owner
        own = self.owners.setdefault(owner, asyncio.Semaphore(most))
        async with own, self.free:  # the owner's first: those who wait for it take no slot from others
            yield
