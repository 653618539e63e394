"""Sends queued jobs to replicas, again when a replica dies, and takes over the jobs of ingresses whose lease expired.

Its whole state is also in the store: when this process dies, another one continues.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.exceptions import ActorDiedError

from pipelines.animate.request import shape_of
from pipelines.core import storage
from pipelines.serving.jobs.turns import Turns
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import MAX_ROWS, Death, Job, Store
from pipelines.serving.videos import results
from pipelines.serving.videos.requests import work_of

logger = logging.getLogger("ray.serve")

Animate = Callable[[str, str], Awaitable[dict[str, Any]]]  # (id, shape) -> facts; raises when the replica dies
RATE_OVER_S = 300.0  # period over which the rate of finished jobs is measured
SWEEP_EVERY_S = 3600.0  # period between searches for files without a job
TEMPORARY_KEPT_S = 86_400.0  # seconds after which temporary files are deleted; no write takes so long
SWEPT_AT_ONCE = 500  # files whose jobs are looked up by one query


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
        self.turns = {name: Turns(settings.replicas.slots) for name in animate}
        self.priority: Callable[[str], float] = lambda owner: 1.0  # of an owner; Service, which has the keys, sets it
        # Adapters that are served with each model. Service, which has checked which fit it, sets them.
        self.loras: dict[str, set[str]] = {name: set(settings.loras) for name in animate}
        self.name = uuid.uuid4().hex  # lease_owner of its jobs
        self.videos = storage.join(settings.place, "videos")
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ends: deque[float] = deque(maxlen=1000)
        self.renewed = time.monotonic()  # when its lease was last renewed
        self.may_take_over_from = 0.0  # time from which it takes over jobs
        self.maintenance: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the renewal of its lease, and the maintenance of abandoned jobs, expired jobs and files."""
        self.maintenance = [asyncio.create_task(self._renew()), asyncio.create_task(self._maintain())]

    def stop(self) -> None:
        """Stop watching; when the lease expires, other processes take over."""
        for task in [*self.tasks.values(), *self.maintenance]:
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
        pause, again = 0.2, False
        while True:
            facts: dict[str, Any] = {}
            try:
                used, served = job.request.get("lora", []), self.loras.get(job.model, set())
                gone = [] if job.model in self.animate else [f"model {job.model}"]
                gone += [f"lora {one['name']}" for one in used if one["name"] not in served]
                if gone:
                    message = f"{gone[0]} is no longer served"
                    await asyncio.to_thread(self.store.fail, job.id, None, "server_error", message, self.settings.ttl_s)
                else:
                    work = work_of(job.request)
                    async with self.turns[job.model].turn(job.owner, again, work, self.priority(job.owner)):
                        facts = await self.animate[job.model](job.id, shape_of(job.request))
            except Exception as error:  # the replica died, or there is none: Ray raises many types for that
                logger.warning(
                    "replica lost (%s); the job will be sent again", type(error).__name__, extra={"job": job.id}
                )
                if isinstance(error, ActorDiedError) and error.actor_id:  # no need to wait until its lease expires
                    death: Death = "none" if error.preempted else "process"
                    await asyncio.to_thread(self.store.release, job.id, error.actor_id, death)
            now = await asyncio.to_thread(self.store.get, job.id)
            if now is None or now.lease_owner != self.name:
                return  # deleted, or taken over while the store was unavailable
            if not now.is_open:
                self.ends.append(time.monotonic())
                self.finished(now, facts)
                return
            await asyncio.sleep(pause)
            pause, again = min(5.0, 2 * pause), True

    async def _renew(self) -> None:
        """Renew the lease of this process, in a thread that nothing else delays."""
        thread, lease = ThreadPoolExecutor(1, "renew"), self.settings.lease_s
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(thread, self.store.renew, self.name, lease)
                # After an outage all leases have expired. Before jobs are taken over, their owners get time to renew.
                if time.monotonic() > self.renewed + lease:
                    self.may_take_over_from = time.monotonic() + lease
                self.renewed = time.monotonic()
            except Exception:
                logger.exception("the lease was not renewed; it is tried again")
            await asyncio.sleep(lease / 3)

    async def _maintain(self) -> None:
        swept = float("-inf")
        while True:
            most = 0  # largest number of jobs that a statement changed or read: MAX_ROWS if there are more
            try:
                if self.may_take_over_from < time.monotonic() < self.renewed + self.settings.lease_s:
                    most = await asyncio.to_thread(self.store.take_abandoned, self.name)
                    logger.log(logging.WARNING if most else logging.DEBUG, "videos taken over: %d", most)
                await asyncio.to_thread(self.store.count_open)
                if self.settings.ingress_replicas > 1:
                    others = await asyncio.to_thread(self.store.count_of_others, self.name)
                    for name, turns in self.turns.items():
                        turns.others = others.get(name, 0)
                # Also jobs whose task here ended with an error of the database, and jobs that were stored although the
                # database's answer was lost.
                unwatched = await asyncio.to_thread(self.store.jobs_to_watch, self.name, frozenset(self.tasks))
                for job in unwatched:
                    self.submit(job)
                expired = await asyncio.to_thread(self.store.delete_expired)
                for job in expired:
                    await asyncio.to_thread(results.remove, self.videos, job.id, job.attempt)
                if time.monotonic() > swept + SWEEP_EVERY_S:
                    await asyncio.to_thread(self._sweep)
                    swept = time.monotonic()
                most = max(most, len(unwatched), len(expired))
            except Exception:
                logger.exception("maintenance of jobs failed; it is tried again")
            await asyncio.sleep(0 if most == MAX_ROWS else self.settings.lease_s / 3)

    def _sweep(self) -> None:
        """Delete files of superseded attempts and of deleted jobs, and temporary files that killed processes left.

        Files of a job that the store does not know are kept: the database may be another, new or restored one.
        """
        unknown = 0
        attempts = sorted(results.attempts(self.videos))
        for first in range(0, len(attempts), SWEPT_AT_ONCE):
            some = attempts[first : first + SWEPT_AT_ONCE]
            ids = sorted({job_id for job_id, _ in some})
            jobs = {job.id: job for job in self.store.get_all(ids)}
            deleted = self.store.deleted(ids)
            for job_id, attempt in some:
                job = jobs.get(job_id)
                if job is None and job_id not in deleted:
                    unknown += 1
                elif job is None or not (job.is_open or (job.status == "completed" and job.attempt == attempt)):
                    results.remove(self.videos, job_id, attempt)
        storage.remove_temporary_files(self.videos, TEMPORARY_KEPT_S)
        if unknown:
            logger.warning("kept %d videos in %s of which this database knows nothing", unknown, self.videos)
