"""Finished videos in MLflow, a run each, for services that want them there.

Knows jobs and core/tracking.py. A thread of its own logs, so that a server which is slow or away holds up nothing;
what is not logged still stands in the video's sidecar.
"""

import logging
import queue
import threading

from pipelines.core import tracking
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job

logger = logging.getLogger("ray.serve")

MOST_WAITING = 1000  # videos; beyond these MLflow is too slow for the service


class Tracker:
    """Logs videos in the order in which they ended."""

    def __init__(self, settings: ServeSettings) -> None:
        self.place, self.uri = settings.place, settings.tracking_uri
        self.waiting: queue.Queue[Job] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def ended(self, job: Job) -> None:
        """A video ended. Returns at once."""
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
