"""Progress of a batch: reported to the store at every step, with previews where they were requested."""

import base64
import time
from collections.abc import Callable
from typing import Any

from cinemo import preview
from pipelines.serving.store import Job

PREVIEW_EVERY = 4  # steps


class StoppedError(Exception):
    """All videos of the batch were cancelled, or restarted elsewhere."""


class Progress:
    """Reports every step of a batch to the store, and stops the batch when none of its jobs is active any more."""

    def __init__(self, store: Callable[..., bool], lease_s: float, jobs: list[Job], steps: int) -> None:
        """store: Store.advance, or what calls it. jobs: claimed by this replica. steps: all that the batch takes."""
        self.store, self.lease_s, self.jobs, self.steps = store, lease_s, jobs, steps
        self.active = {job.id for job in jobs}  # neither cancelled nor restarted elsewhere
        self.first_step = 0.0  # end of the first step, in seconds since 1970
        self.done = 0  # steps

    def advance(self, percent: int, previews: dict[str, str] | None = None) -> None:
        """Store the progress of the active jobs. previews: pictures in base64, by job.

        Raises StoppedError when none is active any more.
        """
        for job in self.jobs:
            picture = (previews or {}).get(job.id)
            more = {} if picture is None else {"preview": picture}
            if job.id in self.active and not self.store(job.id, job.attempt, percent, self.lease_s, **more):
                self.active.discard(job.id)
        if not self.active:
            raise StoppedError

    def step_done(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        """callback_on_step_end of CinemoPipeline."""
        self.one_more(self.previews(pipe, values) if step % PREVIEW_EVERY == 0 else None)
        return values

    def one_more(self, previews: dict[str, str] | None = None) -> None:
        """Count a step, of an inversion or of denoising, and report it."""
        self.first_step = self.first_step or time.time()
        self.done += 1
        self.advance(min(99, 100 * self.done // self.steps), previews)

    def previews(self, pipe: Any, values: dict[str, Any]) -> dict[str, str]:
        """Pictures of the last frames of the active jobs that want them, in base64. values: as in step_done."""
        pictures = {}
        for index, job in enumerate(self.jobs):
            if job.request.get("preview") and job.id in self.active:
                one = slice(index, index + 1)
                given = [values[name][one] for name in ("image_latents", "denoised", "pixels")]
                picture = preview.encoded(preview.last_frame(pipe.vae, *given))
                pictures[job.id] = base64.b64encode(picture).decode()
        return pictures
