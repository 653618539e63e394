"""A replica: loads one model, and makes the videos whose ids it is given, several of one shape at once.

Knows the pipeline, the store and the files of a result. Knows nothing of HTTP or of other replicas. What a job asks for
is read from the store, and nothing counts until it is written there: a replica may die at any line.
"""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from cinemo import CinemoPipeline, checkpoint
from pipelines.animate import request, videos
from pipelines.core import models, storage
from pipelines.serving import results
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store

logger = logging.getLogger("ray.serve")

PATIENCE_S = 300.0  # a finished video waits this long for a database that is away
HEALTH_EVERY_S = 60.0  # an idle replica proves that often that it still animates


class StoppedError(Exception):
    """Nobody wants any of the videos that are being made."""


class Waiting(NamedTuple):
    """A job that was given to this replica."""

    job_id: str
    shape: str
    done: "asyncio.Future[dict[str, Any]]"


class Animator:
    """Loads the model and animates once before it is ready."""

    def __init__(self, settings: dict[str, Any], name: str, model: str) -> None:
        """settings: ServeSettings as a dict. name: what clients call the model. Raises ValueError for no model."""
        self.settings = ServeSettings(**settings)
        replicas, self.name = self.settings.replicas, name
        directory = models.resolve(model)
        self.fingerprint = checkpoint.fingerprint(directory)
        device = "cuda" if replicas.num_gpus else "cpu"
        self.pipe = CinemoPipeline.from_pretrained(directory, getattr(torch, replicas.precision), device)
        self.pipe.set_progress_bar_config(disable=True)
        self.videos = storage.join(self.settings.place, "videos")
        self.store = Store(self.settings.store_url, PATIENCE_S)
        self.waiting: list[Waiting] = []
        self.worker: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1, "animate")  # a batch at a time; the event loop stays free
        self.running: set[str] = set()
        self.sign_of_life = time.monotonic()
        threading.Thread(target=self._keep_leases, daemon=True).start()
        self.animate_once()

    def animate_once(self) -> None:
        """One denoising step of a grey picture: proof that the model works, and what a first call would wait for."""
        card = self.pipe.card
        height, width = card.sizes[0] if card.sizes else (64, 64)
        grey = np.full((height, width, 3), 127, np.uint8)
        frames = card.lengths[0] if card.lengths else 2
        self.pipe(grey, "", num_frames=frames, height=height, width=width, num_inference_steps=1)
        self.sign_of_life = time.monotonic()

    async def check_health(self) -> None:
        """Raises when a step takes as long as twenty leases, or when this replica cannot animate any more."""
        silent = time.monotonic() - self.sign_of_life
        if self.running:
            if silent > 20 * self.settings.lease_s:
                raise RuntimeError(f"no denoising step in {silent:.0f} s")
        elif silent > HEALTH_EVERY_S:
            await asyncio.get_running_loop().run_in_executor(self.thread, self.animate_once)

    async def animate(self, job_id: str, shape: str) -> dict[str, Any]:
        """Make a job's video, unless it was cancelled or deleted; returns facts for the service's metrics."""
        waiting = Waiting(job_id, shape, asyncio.get_running_loop().create_future())
        self.waiting.append(waiting)
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await waiting.done

    async def ready(self) -> bool:
        """Answered by a replica that has loaded its model."""
        return True

    async def _work(self) -> None:
        while self.waiting:
            # The oldest, and those behind it of the same shape.
            same = [waiting for waiting in self.waiting if waiting.shape == self.waiting[0].shape]
            batch = same[: self.settings.replicas.batch]
            self.waiting = [waiting for waiting in self.waiting if waiting not in batch]
            wanted = [waiting for waiting in batch if not waiting.done.done()]
            facts: dict[str, dict[str, Any]] = {}
            failure: Exception | None = None
            try:
                facts = await asyncio.get_running_loop().run_in_executor(
                    self.thread, self._make, [waiting.job_id for waiting in wanted]
                )
            except Exception as error:  # the database is away for longer than it is waited for
                failure = error
            for waiting in wanted:
                if waiting.done.done():
                    continue
                if failure is None:
                    waiting.done.set_result(facts.get(waiting.job_id, {}))
                else:  # whoever gave the job to this replica gives it to one again
                    waiting.done.set_exception(failure)

    def _make(self, job_ids: list[str]) -> dict[str, dict[str, Any]]:
        """In the thread: the videos of a batch; facts by job, of those that were finished."""
        self.running, self.sign_of_life = set(job_ids), time.monotonic()
        claimed: list[tuple[Job, bytes]] = []
        try:
            found = (self.store.claim(job_id, self.settings.lease_s) for job_id in job_ids)
            claimed = [(job, image) for job, image in filter(None, found) if self._may_begin(job)]
            return self._animate(claimed) if claimed else {}
        except StoppedError:
            return {}
        except Exception:
            logger.exception("a batch failed", extra={"jobs": job_ids})
            if self.pipe.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(claimed) > 1:  # one of them, or too many at once: each by itself
                return {name: facts for job, _ in claimed for name, facts in self._make([job.id]).items()}
            for job, _ in claimed:
                message = f"the animation failed; the service's log says why, under {job.id}"
                self.store.fail(job.id, job.attempt, "server_error", message, self.settings.ttl_s)
            return {}
        finally:
            self.running = set()

    def _may_begin(self, job: Job) -> bool:
        if job.attempt <= self.settings.max_attempts:
            return True
        message = f"given up after {self.settings.max_attempts} attempts, none of which came to an end"
        self.store.fail(job.id, job.attempt, "server_error", message, self.settings.ttl_s)
        return False

    def _animate(self, claimed: list[tuple[Job, bytes]]) -> dict[str, dict[str, Any]]:
        jobs = [job for job, _ in claimed]
        asked = [job.request for job in jobs]
        wanted = {job.id for job in jobs}
        steps, began = asked[0]["num_inference_steps"], time.time()
        first_step: list[float] = []

        def advance(percent: int) -> None:
            """Everyone who waits sees it; a video that nobody wants any more is not told about again."""
            self.sign_of_life = time.monotonic()
            for job in jobs:
                if job.id in wanted and not self.store.advance(job.id, job.attempt, percent, self.settings.lease_s):
                    wanted.discard(job.id)
            if not wanted:
                raise StoppedError

        def step_done(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            first_step[:1] = [time.time()] if step == 0 else first_step
            advance(min(99, 100 * (step + 1) // steps))
            return values

        advance(0)
        frames = self.pipe(
            [image for _, image in claimed],
            [one["prompt"] for one in asked],
            negative_prompt=[one["negative_prompt"] for one in asked],
            motion_bucket=[one["motion_bucket"] for one in asked],
            seed=[one["seed"] for one in asked],
            guidance_scale=[one["guidance_scale"] for one in asked],
            callback_on_step_end=step_done,
            **request.shared(asked[0]),
        ).frames
        ended = time.time()
        done = {}
        for job, video in zip(jobs, frames, strict=True):
            if job.id not in wanted:
                continue
            timings = {
                "queued_seconds": round(began - job.created_at, 3),
                "first_step_seconds": round(first_step[0] - job.created_at, 3),
                "step_seconds": round((ended - began) / steps, 4),
                "animate_seconds": round(ended - began, 3),
            }
            facts = {
                "id": job.id,
                "model": self.name,
                "model_fingerprint": self.fingerprint,
                "model_lineage": self.pipe.card.lineage,
                "request": job.request,
                "versions": videos.versions(),
                "attempt": job.attempt,
                "batch": len(jobs),
                "timings": timings,
            }
            facts = results.write(self.videos, job.id, job.attempt, video, job.request["fps"], facts)
            kept = {name: facts[name] for name in ("motion_score", "motion_bucket", "model_fingerprint", "timings")}
            if self.store.complete(job.id, job.attempt, kept, self.settings.ttl_s):
                memory = torch.cuda.max_memory_allocated() if self.pipe.device.type == "cuda" else 0
                done[job.id] = {**kept, "batch": len(jobs), "gpu_memory_bytes": memory}
                logger.info("completed", extra={"job": job.id, "seconds": timings["animate_seconds"]})
            else:
                results.remove(self.videos, job.id, job.attempt)
        return done

    def _keep_leases(self) -> None:
        """The thread: a step may take longer than a lease."""
        while True:
            time.sleep(self.settings.lease_s / 3)
            try:
                self.store.extend(sorted(self.running), self.settings.lease_s)
            except Exception:
                logger.exception("leases were not extended")
