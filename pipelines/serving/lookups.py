"""Lookups of jobs: one query at a time serves all who ask, however many clients poll or read events."""

import asyncio
import time

from pipelines.serving.store import Job, Store


class Lookups:
    """Gets jobs of any owner, in one event loop. Two queries begin at least `pause_s` seconds apart."""

    def __init__(self, store: Store, pause_s: float) -> None:
        self.store, self.pause_s = store, pause_s
        self.asked: set[str] = set()  # ids for the next query
        self.next: asyncio.Task[dict[str, Job]] | None = None
        self.began, self.one = float("-inf"), asyncio.Lock()

    async def get(self, job_id: str) -> Job | None:
        """Get a job as it is now or later; None if there is none. Raises an error of the database to all who wait."""
        self.asked.add(job_id)
        if self.next is None:
            self.next = asyncio.create_task(self._query())
        return (await asyncio.shield(self.next)).get(job_id)

    async def _query(self) -> dict[str, Job]:
        async with self.one:
            await asyncio.sleep(self.began + self.pause_s - time.monotonic())
            self.began = time.monotonic()
            ids, self.asked, self.next = self.asked, set(), None  # who asks from here on waits for the next query
            return {job.id: job for job in await asyncio.to_thread(self.store.get_all, list(ids))}
