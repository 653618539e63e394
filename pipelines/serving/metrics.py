"""Prometheus metrics of the service and, with the setting `track`, an MLflow run for each finished video.

Each of several ingress processes reports only its own counts. A separate thread logs to MLflow, so that a slow or
unavailable server delays nothing; the video's sidecar has the same facts.
"""

import logging
import queue
import threading
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipelines.core import tracking
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store

logger = logging.getLogger("ray.serve")

MOST_WAITING = 1000  # videos to be logged; further ones are dropped
COUNTS_AGE_S = 10.0  # the jobs are counted no more often, however many scrape
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """The numbers of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("cinemo_http_requests_total", "answers", ["method", "route", "status"], **shared)
        self.answers = Histogram("cinemo_http_seconds", "time to answer", ["route"], buckets=SECONDS, **shared)
        self.videos = Counter("cinemo_videos_total", "videos that ended", ["model", "outcome"], **shared)
        self.queue = Gauge("cinemo_jobs", "videos in the store", ["status"], **shared)
        self.batch = Histogram("cinemo_batch_size", "videos made at once", buckets=(1, 2, 4, 8, 16, 32, 64), **shared)
        self.step = Histogram("cinemo_step_seconds", "a denoising step", buckets=SECONDS, **shared)
        self.first = Histogram("cinemo_first_step_seconds", "request to first step done", buckets=SECONDS, **shared)
        self.result = Histogram("cinemo_result_seconds", "request to finished video", buckets=SECONDS, **shared)
        self.memory = Gauge("cinemo_gpu_memory_bytes", "peak memory of a replica's GPU", ["model"], **shared)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record an HTTP response. route: its pattern, not its path."""
        self.requests.labels(method, route, status).inc()
        self.answers.labels(route).observe(seconds)

    def ended(self, job: Job, facts: dict[str, Any]) -> None:
        """Record the end of a job. facts: as the replica returned them, or {}."""
        outcome = job.error["code"] if job.error else job.status
        self.videos.labels(job.model, outcome).inc()
        if job.status == "completed" and job.ended_at:
            self.result.observe(job.ended_at - job.created_at)
        if facts:
            self.batch.observe(facts["batch"])
            self.step.observe(facts["timings"]["step_seconds"])
            self.first.observe(facts["timings"]["first_step_seconds"])
            if facts.get("gpu_memory_bytes"):
                self.memory.labels(job.model).set(facts["gpu_memory_bytes"])

    def text(self, store: Store) -> tuple[bytes, str]:
        """All metrics as text, and its media type."""
        counts = store.counts(COUNTS_AGE_S)
        for status in ("queued", "in_progress", "completed", "failed"):
            self.queue.labels(status).set(counts.get(status, 0))
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


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
