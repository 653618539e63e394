"""Lookups of jobs: one query at a time serves all who ask, however many clients poll or read events."""

import asyncio
import time

from pipelines.serving.store import Job, Store


class SharedQuery:
    """Lookups of jobs of any owner, in one event loop. Two queries begin at least `pause_s` seconds apart."""

    def __init__(self, store: Store, pause_s: float) -> None:
        self.store, self.pause_s = store, pause_s
        self.asked: set[str] = set()  # ids for the next query
        self.next: asyncio.Task[dict[str, Job]] | None = None
        self.began, self.one = float("-inf"), asyncio.Lock()

    async def get(self, job_id: str) -> Job | None:
        """Get a job by a query that begins after this call; None if there is none.

        If the query fails, all that wait for it get the error of the database.
        """
        self.asked.add(job_id)
        if self.next is None or self.next.done():
            self.next = asyncio.create_task(self._query())
            self.next.add_done_callback(lambda done: done.cancelled() or done.exception())  # although all have left
        return (await asyncio.shield(self.next)).get(job_id)

    async def _query(self) -> dict[str, Job]:
        async with self.one:
            await asyncio.sleep(self.began + self.pause_s - time.monotonic())
            self.began = time.monotonic()
            ids, self.asked, self.next = self.asked, set(), None  # calls from here on wait for the next query
            return {job.id: job for job in await asyncio.to_thread(self.store.get_all, list(ids))}
