"""Metrics of the service and, with the setting `track`, an MLflow run for each finished video.

Metrics are Ray's: every node exports those of its processes, with their replica as a label, so that sums are right
however many ingresses there are. A separate thread logs to MLflow, so that a slow or unavailable server delays nothing;
the video's sidecar has the same facts.
"""

import asyncio
import logging
import queue
import threading
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from ray.serve import metrics

from pipelines.core import tracking
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store

logger = logging.getLogger("ray.serve")

MOST_WAITING = 1000  # videos to be logged; further ones are dropped
SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000]
STATUSES = ("queued", "in_progress", "completed", "failed")
COUNT_EVERY_S = 10.0  # seconds between two counts of the jobs in the database


class Metrics:
    """Counters, gauges and histograms of this process; Ray exports them with the prefix `ray_`."""

    def __init__(self) -> None:
        counter, gauge, histogram = metrics.Counter, metrics.Gauge, metrics.Histogram
        self.requests = counter("cinemo_http_requests_total", "answers", ("method", "route", "status"))
        self.answers = histogram("cinemo_http_seconds", "time to answer", SECONDS, ("route",))
        self.videos = counter("cinemo_videos_total", "videos that ended", ("model", "outcome"))
        self.queue = gauge("cinemo_jobs", "videos in the store", ("status",))
        self.batch = histogram("cinemo_batch_size", "videos made at once", [1, 2, 4, 8, 16, 32, 64])
        self.step = histogram("cinemo_step_seconds", "a denoising step", SECONDS)
        self.first = histogram("cinemo_first_step_seconds", "request to first step done", SECONDS)
        self.result = histogram("cinemo_result_seconds", "request to finished video", SECONDS)
        self.memory = gauge("cinemo_gpu_memory_bytes", "peak memory of a replica's GPU", ("model",))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an HTTP response. route: its pattern, not its path."""
        self.requests.inc(tags={"method": method, "route": route, "status": str(status)})
        self.answers.observe(seconds, {"route": route})

    def ended(self, job: Job, facts: dict[str, Any]) -> None:
        """Record the end of a job. facts: as the replica returned them, or {}."""
        outcome = job.error["code"] if job.error else job.status
        self.videos.inc(tags={"model": job.model, "outcome": outcome})
        if job.status == "completed" and job.ended_at:
            self.result.observe(job.ended_at - job.created_at, {})
        if facts:
            self.batch.observe(facts["batch"], {})
            self.step.observe(facts["timings"]["step_seconds"], {})
            self.first.observe(facts["timings"]["first_step_seconds"], {})
            if facts.get("gpu_memory_bytes"):
                self.memory.set(facts["gpu_memory_bytes"], {"model": job.model})

    async def watch(self, store: Store) -> None:
        """Count the jobs in the database again and again. Every process reports the same numbers."""
        while True:
            try:
                counts = await asyncio.to_thread(store.counts, COUNT_EVERY_S / 2)
                for status in STATUSES:
                    self.queue.set(counts.get(status, 0), {"status": status})
            except Exception:
                logger.exception("jobs were not counted; it is tried again")
            await asyncio.sleep(COUNT_EVERY_S)


def queue_text(store: Store, max_age_s: float) -> tuple[bytes, str]:
    """The jobs in the database by status in Prometheus's text format, and its media type.

    max_age_s: seconds for which the last count may be used.
    """
    registry, counts = CollectorRegistry(), store.counts(max_age_s)
    gauge = Gauge("cinemo_jobs", "videos in the store", ["status"], registry=registry)
    for status in STATUSES:
        gauge.labels(status).set(counts.get(status, 0))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class Tracker:
    """Logs videos in the order in which they ended."""

    def __init__(self, settings: ServeSettings) -> None:
        self.place, self.uri = settings.place, settings.tracking_uri
        self.waiting: queue.Queue[Job] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def ended(self, job: Job) -> None:
        """Queue an ended video for logging; returns at once."""
        if job.result is None:
            return
        try:
            self.waiting.put_nowait(job)
        except queue.Full:
            logger.warning("not tracked: MLflow is behind by %d videos", MOST_WAITING, extra={"job": job.id})

    def _work(self) -> None:
        while True:
            job = self.waiting.get()
            assert job.result is not None
            try:
                with tracking.start("serve", self.place, self.uri, {"model": job.model, **job.request}) as log:
                    names = ("motion_score", "motion_bucket")
                    log.metrics({**{name: job.result[name] for name in names}, **job.result["timings"]})
                    log.tags({"video": job.id, tracking.FINGERPRINT: job.result["model_fingerprint"]})
            except Exception:
                logger.exception("not tracked", extra={"job": job.id})
            self.waiting.task_done()
