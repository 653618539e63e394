"""Prometheus metrics: requests, jobs and times of this process, and the length of the queue from the store.

Each of several ingress processes reports only its own counts.
"""

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipelines.serving.store import Job, Store

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
        counts = store.counts()
        for status in ("queued", "in_progress", "completed", "failed"):
            self.queue.labels(status).set(counts.get(status, 0))
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
