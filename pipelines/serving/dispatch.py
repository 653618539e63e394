"""Hands queued jobs to replicas, and sees to those that nobody works on any more.

Knows jobs, leases, and a function for each model that has a replica make a video. Knows nothing of HTTP, or of what a
replica does. Everything it knows of a job is also in the store: when this process dies, another one goes on.
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
RATE_OVER_S = 300.0  # how far the measured rate looks back
SWEEP_EVERY_S = 3600.0  # files that no job names are looked for that often


class Dispatcher:
    """The jobs that this process has given to replicas. To be used in one event loop, between start and stop."""

    def __init__(
        self,
        settings: ServeSettings,
        store: Store,
        animate: Mapping[str, Animate],
        finished: Callable[[Job, dict[str, Any]], None] = lambda job, facts: None,
    ) -> None:
        """animate: by the name of the model. finished: is told of every job that ended here, and its facts."""
        self.settings, self.store, self.animate, self.finished = settings, store, animate, finished
        self.name = uuid.uuid4().hex  # as the owner of leases
        self.videos = storage.join(settings.place, "videos")
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: deque[float] = deque(maxlen=1000)
        self.maintenance: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look after what is there."""
        self.maintenance = asyncio.create_task(self._maintain())

    def stop(self) -> None:
        """Leave everything to others: leases run out."""
        for task in [*self.tasks.values(), *filter(None, [self.maintenance])]:
            task.cancel()

    def submit(self, job: Job) -> None:
        """See to it that a job, which is in the store, is made."""
        if job.id not in self.tasks:
            task = asyncio.create_task(self._watch_job(job))
            self.tasks[job.id] = task
            task.add_done_callback(lambda _: self.tasks.pop(job.id, None))

    async def ended(self, job_id: str) -> None:
        """Returns when a job has ended, whoever sees to it."""
        if (task := self.tasks.get(job_id)) is not None:
            await asyncio.wait([task])
        while (job := await asyncio.to_thread(self.store.get, job_id)) is not None and job.is_open:
            await asyncio.sleep(0.2)

    def retry_after(self, waiting: int) -> int:
        """Seconds until there is room again, by the rate of the last minutes; `waiting`: jobs that are open."""
        now = time.monotonic()
        recent = [end for end in self.ends if end > now - RATE_OVER_S]
        if len(recent) < 2:
            return 10  # nothing was measured yet
        rate = (len(recent) - 1) / max(1e-3, recent[-1] - recent[0])
        over = max(1, waiting - self.settings.limits.max_queue + 1)
        return max(1, min(600, round(over / rate + 0.5)))

    async def _watch_job(self, job: Job) -> None:
        pause = 0.2
        while True:
            facts: dict[str, Any] = {}
            try:
                if job.model not in self.animate:
                    message = f"model {job.model} is not served any more"
                    await asyncio.to_thread(self.store.fail, job.id, None, "server_error", message, self.settings.ttl_s)
                else:
                    facts = await self.animate[job.model](job.id, shape_of(job.request))
            except Exception as error:  # the replica died, or there is none: Ray has many ways to say so
                logger.warning("to be begun again: %s", type(error).__name__, extra={"job": job.id})
            now = await asyncio.to_thread(self.store.get, job.id)
            if now is None or now.lease_owner != self.name:
                return  # deleted, or another process took it while the store was away
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
                    logger.warning("begun again: nobody worked on it", extra={"job": job.id})
                    self.submit(job)
                for job in await asyncio.to_thread(self.store.delete_expired):
                    await asyncio.to_thread(results.remove, self.videos, job.id, job.attempt)
                if time.monotonic() > swept + SWEEP_EVERY_S:
                    await asyncio.to_thread(self._sweep)
                    swept = time.monotonic()
            except Exception:
                logger.exception("the service looks after its jobs again in a moment")
            await asyncio.sleep(self.settings.lease_s / 3)

    def _sweep(self) -> None:
        """Delete files of attempts that did not count, and of deleted jobs, where the store proves that they are.

        A job that the store has never heard of proves nothing: the database may be another, new or restored one.
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
