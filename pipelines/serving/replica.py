"""A replica: loads one model and makes the videos of the jobs it is sent, several of the same shape at once.

Requests are read from the store, and a result counts only once it is written there: a replica may die at any line.
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import ray
import tenacity
import torch

from cinemo import CinemoPipeline
from cinemo.sidecar import LoraFacts
from pipelines.animate import request, videos
from pipelines.core import models, storage
from pipelines.core.precision import allow_tf32
from pipelines.serving.jobs.database import UNAVAILABLE
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Death, Job, Store
from pipelines.serving.videos import frames, inputs, results
from pipelines.serving.videos.progress import Progress, StoppedError
from pipelines.serving.videos.served_adapters import ServedAdapters

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

PATIENCE_S = 300.0  # seconds that a finished video waits for an unavailable database or storage
HEALTH_EVERY_S = 60.0  # seconds after which an idle replica tests its device
LONE_DEATHS = 2  # a job fails after so many processes died while they animated it alone


def request_id(job: Job) -> dict[str, str]:
    """The id of the HTTP request of a job, for log lines; {} if it has none."""
    return {"request_id": job.request["request_id"]} if "request_id" in job.request else {}


class StorageAwayError(Exception):
    """The storage accepted no files for PATIENCE_S, which is not the job's fault."""


class DeviceLostError(Exception):
    """The device no longer computes, which is not the job's fault. Serve replaces this replica."""


class Waiting(NamedTuple):
    """A job that was sent to this replica."""

    job_id: str
    shape: str
    done: "asyncio.Future[dict[str, Any]]"  # shared by all calls for this job


class Animator:
    """The deployment of one model: loads it, and animates once before it is ready."""

    def __init__(self, settings: dict[str, Any], name: str, model: str) -> None:
        """settings: ServeSettings as a dict. name: of the model in the API. Raises ValueError for an unknown MODEL."""
        self.settings = ServeSettings(**settings)
        replicas, self.name = self.settings.replicas, name
        directory = models.resolve(model)
        self.fingerprint = models.fingerprint(directory)
        device = "cuda" if replicas.num_gpus else "cpu"
        allow_tf32(replicas.arithmetic != "float32")
        self.pipe = CinemoPipeline.from_pretrained(directory, getattr(torch, replicas.arithmetic), device)
        if models.fingerprint(directory) != self.fingerprint:
            raise ValueError(f"model {models.plain(model)} was replaced while it was loaded; load it again")
        self.pipe.set_progress_bar_config(disable=True)
        self.adapters = ServedAdapters(self.pipe, self.settings.loras, model)
        self.videos = storage.join(self.settings.place, "videos")
        self.store = Store(self.settings.store_url, PATIENCE_S)
        # Ray's errors about a dead actor have its id, by which the dispatcher finds the attempts that died with it.
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        self.replica = actor or uuid.uuid4().hex
        self.waiting: list[Waiting] = []
        self.sent: dict[str, Waiting] = {}  # jobs that wait or run here
        self.worker: asyncio.Task[None] | None = None
        self.thread = ThreadPoolExecutor(1, "animate")  # one batch at a time, outside the event loop
        self.running: set[str] = set()
        self.storage_works = self.device_lost = False
        self.last_bytes = 0  # of the files that were last written, or should have been
        self.last_sign_of_life = began = time.monotonic()
        threading.Thread(target=self._keep_leases, daemon=True).start()
        self.animate_once()
        # A step of a full-size model takes minutes on CPUs. One that takes far longer than this animation has hung.
        self.longest_step_s = 20 * max(self.settings.lease_s, time.monotonic() - began)

    def animate_once(self) -> None:
        """Make a video of a grey picture in one step, to test the model and the encoder, and to warm them up."""
        card = self.pipe.card
        height, width = card.sizes[0] if card.sizes else (64, 64)
        grey = np.full((height, width, 3), 127, np.uint8)
        frames = card.lengths[0] if card.lengths else 2
        made = self.pipe(grey, "", num_frames=frames, height=height, width=width, num_inference_steps=1)
        videos.video(made.frames[0], request.FPS)
        self.last_sign_of_life = time.monotonic()

    async def check_health(self) -> None:
        """Raise when the device is lost or a step takes far too long. An idle replica tests its device first.

        Returns within milliseconds otherwise, however long a step of this model takes.
        """
        silent = time.monotonic() - self.last_sign_of_life
        if self.running and silent > self.longest_step_s:
            raise RuntimeError(f"no denoising step in {silent:.0f} s")
        if not self.running and silent > HEALTH_EVERY_S:
            await asyncio.to_thread(self._test_device)
        if self.device_lost:
            raise DeviceLostError(f"{self.pipe.device} no longer computes")

    async def animate(self, job_id: str, shape: str) -> dict[str, Any]:
        """Make a job's video, unless it was cancelled or deleted; returns facts for the service's metrics."""
        if job_id not in self.sent:  # an ingress that took the job over sends it again while the first call waits
            self.sent[job_id] = Waiting(job_id, shape, asyncio.get_running_loop().create_future())
            self.waiting.append(self.sent[job_id])
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await asyncio.shield(self.sent[job_id].done)

    async def _work(self) -> None:
        while self.waiting:
            # The oldest job, and later ones of the same shape.
            same = [waiting for waiting in self.waiting if waiting.shape == self.waiting[0].shape]
            batch = same[: 1 if self.waiting[0].shape.endswith(request.CHAIN) else self.settings.replicas.batch]
            self.waiting = [waiting for waiting in self.waiting if waiting not in batch]
            facts: dict[str, dict[str, Any]] = {}
            failure: Exception | None = None
            try:
                facts = await asyncio.get_running_loop().run_in_executor(
                    self.thread, self._make, [waiting.job_id for waiting in batch]
                )
            except Exception as error:  # database, storage or device failed: the dispatcher sends the jobs again
                failure = error
            finally:
                for waiting in batch:
                    del self.sent[waiting.job_id]
            for waiting in batch:
                if failure is None:
                    waiting.done.set_result(facts.get(waiting.job_id, {}))
                else:
                    waiting.done.set_exception(failure)

    def _make(self, job_ids: list[str]) -> dict[str, dict[str, Any]]:
        """Make the videos of a batch, in the thread; returns facts of the finished ones, by job.

        Raises one of UNAVAILABLE, StorageAwayError and DeviceLostError, after releasing the jobs.
        """
        if self.device_lost:
            raise DeviceLostError
        self.running, self.last_sign_of_life = set(job_ids), time.monotonic()
        claimed: list[tuple[Job, bytes]] = []
        facts: dict[str, dict[str, Any]] = {}
        again: list[str] = []  # jobs to be tried alone
        try:
            if not self.storage_works:  # claim and animate nothing that could not be stored
                self._patiently(results.check_writable, self.videos, self.last_bytes)
            lease, alone = self.settings.lease_s, len(job_ids) == 1
            claims = (self.store.claim(job_id, self.replica, lease, alone) for job_id in job_ids)
            claimed.extend((job, image) for job, image in filter(None, claims) if self._may_begin(job))
            facts = self._animate(claimed) if claimed else {}
            if not alone:  # a job that could not be claimed in a batch may have killed a process before: try it alone
                again = [job_id for job_id in job_ids if job_id not in {job.id for job, _ in claimed}]
        except StoppedError:
            return {}
        except (*UNAVAILABLE, StorageAwayError):
            self._release(claimed)
            raise
        except Exception:
            logger.exception("a batch failed", extra={"jobs": job_ids})
            self._test_device()
            if self.device_lost:
                self._release(claimed, "device")
                raise DeviceLostError from None
            if len(claimed) > 1:  # one job is at fault, or the batch is too large
                again = job_ids
                self._release(claimed)
            else:
                self._fail(claimed)
        finally:
            self.running = set()
        for job_id in again:
            facts |= self._make([job_id])
        return facts

    def _fail(self, claimed: list[tuple[Job, bytes]]) -> None:
        for job, _ in claimed:
            message = f"the animation failed; the service's log says why, under {job.id}"
            self.store.fail(job.id, job.attempt, "server_error", message, self.settings.ttl_s)

    def _test_device(self) -> None:
        """Test the device by a tiny computation: some errors of a GPU last as long as the process."""
        try:
            if self.pipe.device.type == "cuda":
                torch.cuda.empty_cache()
            assert torch.ones(1, device=self.pipe.device).add(1).item() == 2
            self.last_sign_of_life = time.monotonic()
        except Exception:
            logger.exception("%s no longer computes; this replica must be replaced", self.pipe.device)
            self.device_lost = True

    def _release(self, claimed: list[tuple[Job, bytes]], death: Death = "none") -> None:
        try:
            for job, _ in claimed:
                self.store.release(job.id, self.replica, death)
        except UNAVAILABLE:  # then the leases of these attempts expire, and each counts as a death
            logger.exception("attempts were not released")

    def _may_begin(self, job: Job) -> bool:
        # An ingress of an older or newer configuration may send what this replica lacks: deployments have numbers.
        missing = job.model if job.model != self.name else self.adapters.missing(job.request)
        if missing is not None:
            logger.warning("%s is not served here; the job goes back", missing, extra={"job": job.id})
            self.store.release(job.id, self.replica)
            return False
        if job.lone_deaths < LONE_DEATHS and job.deaths < self.settings.max_attempts:
            return True
        message = f"given up: its attempts ended {job.deaths} times because a process or a device died"
        self.store.fail(job.id, job.attempt, "server_error", message, self.settings.ttl_s)
        return False

    def _animate(self, claimed: list[tuple[Job, bytes]]) -> dict[str, dict[str, Any]]:
        jobs, began = [job for job, _ in claimed], time.time()
        requests = [job.request for job in jobs]
        steps = frames.num_steps(requests[0])
        progress = Progress(self._advance, self.settings.lease_s, jobs, steps)
        progress.advance(0)
        loras = self.adapters.use(requests[0])
        made_from = [inputs.unpack(job.request, stored) for job, stored in claimed]
        made = frames.make(self.pipe, requests, made_from, progress.step_done, progress.one_more)
        ended, done = time.time(), {}
        for job, video in zip(jobs, made, strict=True):
            if job.id not in progress.active:
                continue
            timings = {
                "queued_seconds": round(began - job.created_at, 3),
                "first_step_seconds": round(progress.first_step - job.created_at, 3),
                "step_seconds": round((ended - began) / steps, 4),
                "animate_seconds": round(ended - began, 3),
            }
            if (facts := self._complete(job, video, timings, len(jobs), loras)) is not None:
                done[job.id] = facts
        return done

    def _advance(self, *report: Any, **more: Any) -> bool:
        self.last_sign_of_life = time.monotonic()
        return self.store.advance(*report, **more)

    def _complete(
        self, job: Job, video: np.ndarray, timings: dict[str, float], batch: int, loras: list[LoraFacts]
    ) -> dict[str, Any] | None:
        """Write a video's files and complete its job; returns facts for metrics, None if the attempt was superseded.

        The files are kept in memory while the storage is unavailable. Raises StorageAwayError after PATIENCE_S.
        """
        self.last_bytes = video.nbytes  # the encoder's file in the temporary folder is smaller
        facts, files = self._patiently(
            results.encode,
            video,
            {
                "id": job.id,
                "model": self.name,
                "model_fingerprint": self.fingerprint,
                "model_lineage": self.pipe.card.lineage,
                **({"loras": loras} if loras else {}),
                "request": job.request,
                "versions": videos.versions(),
                "attempt": job.attempt,
                "batch": batch,
                "timings": timings,
            },
        )
        self.last_bytes = sum(map(len, files.values()))
        self._patiently(results.write, self.videos, job.id, job.attempt, files)
        result = {name: facts[name] for name in ("motion_score", "motion_bucket", "model_fingerprint", "timings")}
        if not self.store.complete(job.id, job.attempt, result, self.settings.ttl_s):
            results.remove(self.videos, job.id, job.attempt)
            return None
        memory = torch.cuda.max_memory_allocated() if self.pipe.device.type == "cuda" else 0
        logger.info("completed", extra={"job": job.id, "seconds": timings["animate_seconds"], **request_id(job)})
        return {**result, "batch": batch, "gpu_memory_bytes": memory}

    def _patiently(self, write: Callable[..., T], *arguments: Any) -> T:
        """Call `write` until storage or temporary folder are available. Raises StorageAwayError after PATIENCE_S."""
        patiently = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(OSError),
            wait=tenacity.wait_exponential_jitter(initial=0.2, max=10.0),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            before_sleep=self._waits_for_storage,
            reraise=True,
        )
        try:
            written = patiently(write, *arguments)
            self.storage_works = True
            return written
        except OSError as error:
            self.storage_works = False
            raise StorageAwayError(f"{self.videos} accepted no file in {PATIENCE_S:.0f} s") from error

    def _waits_for_storage(self, state: tenacity.RetryCallState) -> None:
        self.last_sign_of_life = time.monotonic()  # a restart by the health check would lose the frames
        error = state.outcome.exception() if state.outcome else None
        logger.warning("waits for the storage: %s", error, extra={"jobs": sorted(self.running)})

    def _keep_leases(self) -> None:
        """Extend leases from a thread, because a step may take longer than a lease."""
        while True:
            time.sleep(self.settings.lease_s / 3)
            try:
                self.store.renew_attempts(sorted(self.running), self.replica, self.settings.lease_s)
            except Exception:
                logger.exception("leases were not extended")
