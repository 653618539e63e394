"""Log finished videos in MLflow, one run each, if the service is set to `track`.

A separate thread logs, so that a slow or unavailable server delays nothing; the video's sidecar has the same facts.
"""

import logging
import queue
import threading

from pipelines.core import tracking
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job

logger = logging.getLogger("ray.serve")

MOST_WAITING = 1000  # videos to be logged; further ones are dropped


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
