"""Sends queued jobs to replicas, and takes over jobs whose lease ran out.

Its whole state is also in the store: when this process dies, another one continues.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pipelines.animate.request import shape_of
from pipelines.core import storage
from pipelines.serving import results
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store

logger = logging.getLogger("ray.serve")

Animate = Callable[[str, str], Awaitable[dict[str, Any]]]  # (id, shape) -> facts; raises when the replica dies
RATE_OVER_S = 300.0  # period over which the rate of finished jobs is measured
SWEEP_EVERY_S = 3600.0  # period between searches for files without a job


class Dispatcher:
    """Watches the jobs that this process sent to replicas. Use it in one event loop, between start and stop."""

    def __init__(
        self,
        settings: ServeSettings,
        store: Store,
        animate: Mapping[str, Animate],
        finished: Callable[[Job, dict[str, Any]], None] = lambda job, facts: None,
    ) -> None:
        """animate: by the model's name. finished: called with every job that ended here, and its facts."""
        self.settings, self.store, self.animate, self.finished = settings, store, animate, finished
        self.name = uuid.uuid4().hex  # lease_owner of its jobs
        self.videos = storage.join(settings.place, "videos")
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: deque[float] = deque(maxlen=1000)
        self.maintenance: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the maintenance of leases, expired jobs and files."""
        self.maintenance = asyncio.create_task(self._maintain())

    def stop(self) -> None:
        """Stop watching; when the leases run out, other processes take over."""
        for task in [*self.tasks.values(), *filter(None, [self.maintenance])]:
            task.cancel()

    def submit(self, job: Job) -> None:
        """Send a job, which is in the store, to a replica, and watch it until it ends."""
        if job.id not in self.tasks:
            task = asyncio.create_task(self._watch_job(job))
            self.tasks[job.id] = task
            task.add_done_callback(lambda _: self.tasks.pop(job.id, None))

    async def ended(self, job_id: str) -> None:
        """Return when a job has ended, whichever process watches it."""
        if (task := self.tasks.get(job_id)) is not None:
            await asyncio.wait([task])
        while (job := await asyncio.to_thread(self.store.get, job_id)) is not None and job.is_open:
            await asyncio.sleep(0.2)

    def retry_after(self, waiting: int) -> int:
        """Estimate the seconds until the queue has room, from the recent rate. waiting: number of open jobs."""
        now = time.monotonic()
        recent = [end for end in self.ends if end > now - RATE_OVER_S]
        if len(recent) < 2:
            return 10  # no rate yet
        rate = (len(recent) - 1) / max(1e-3, recent[-1] - recent[0])
        over = max(1, waiting - self.settings.limits.max_queue + 1)
        return max(1, min(600, round(over / rate + 0.5)))

    async def _watch_job(self, job: Job) -> None:
        pause = 0.2
        while True:
            facts: dict[str, Any] = {}
            try:
                if job.model not in self.animate:
                    message = f"model {job.model} is no longer served"
                    await asyncio.to_thread(self.store.fail, job.id, None, "server_error", message, self.settings.ttl_s)
                else:
                    facts = await self.animate[job.model](job.id, shape_of(job.request))
            except Exception as error:  # the replica died, or there is none: Ray raises many types for that
                logger.warning("will be restarted: %s", type(error).__name__, extra={"job": job.id})
            now = await asyncio.to_thread(self.store.get, job.id)
            if now is None or now.lease_owner != self.name:
                return  # deleted, or taken over while the store was unavailable
            if not now.is_open:
                self.ends.append(time.monotonic())
                self.finished(now, facts)
                return
            await asyncio.sleep(pause)
            pause = min(5.0, 2 * pause)

    async def _maintain(self) -> None:
        swept = float("-inf")
        while True:
            try:
                lease = self.settings.lease_s
                await asyncio.to_thread(self.store.extend, sorted(self.tasks), lease, self.name)
                for job in await asyncio.to_thread(self.store.take_abandoned, self.name, lease):
                    logger.warning("restarted: its lease ran out", extra={"job": job.id})
                    self.submit(job)
                for job in await asyncio.to_thread(self.store.delete_expired):
                    await asyncio.to_thread(results.remove, self.videos, job.id, job.attempt)
                if time.monotonic() > swept + SWEEP_EVERY_S:
                    await asyncio.to_thread(self._sweep)
                    swept = time.monotonic()
            except Exception:
                logger.exception("maintenance of jobs failed; it is tried again")
            await asyncio.sleep(self.settings.lease_s / 3)

    def _sweep(self) -> None:
        """Delete files of superseded attempts and of deleted jobs.

        Files of a job that the store does not know are kept: the database may be another, new or restored one.
        """
        unknown = 0
        for job_id, attempt in sorted(results.attempts(self.videos)):
            job = self.store.get(job_id)
            if job is None and not self.store.was_deleted(job_id):
                unknown += 1
            elif job is None or not (job.is_open or (job.status == "completed" and job.attempt == attempt)):
                results.remove(self.videos, job_id, attempt)
        if unknown:
            logger.warning("kept %d videos in %s of which this database knows nothing", unknown, self.videos)
