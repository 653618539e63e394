"""A replica without Ray, and jobs for it."""

import asyncio
import time
from pathlib import Path
from typing import Any

from pipelines.animate.request import shape_of
from pipelines.serving import schema, served_models
from pipelines.serving.replica import Animator
from pipelines.serving.settings import Limits, Replicas, ServeSettings
from pipelines.serving.store import Job
from pipelines.serving.videos.requests import complete
from tests.pipelines.serving.in_process import png


def make_animator(small: str, loras: dict[str, str], output: Path) -> Animator:
    """Make a replica of the small model, in this process, whose batches have up to four videos."""
    settings = ServeSettings(model=small, loras=loras, output=str(output), replicas=Replicas(max_batch=4))
    return Animator(settings.model_dump(), "small", small)


def keep(animator: Animator, name: str, **asked: Any) -> Job:
    """Create a job in the animator's store. asked: fields of the request."""
    served = served_models.look_up("small", animator.settings.model, animator.settings.loras)
    wanted = schema.VideoRequest(**{"prompt": "", "size": "96x64", **asked})
    request = complete(wanted, served, Limits(max_steps=900))
    now = time.time()
    job = Job(
        id=f"video_{name}", owner="me", model="small", request=request, lease_owner="me", created_at=now,
        request_digest=name,
    )  # fmt: skip
    assert animator.store.create(job, png(), 100, 100)[1]
    return job


def animate(animator: Animator, *jobs: Job) -> list[dict[str, Any]]:
    """Send the jobs at the same time; returns their facts."""

    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(animator.animate(job.id, shape_of(job.request)) for job in jobs))

    return asyncio.run(all_of_them())
