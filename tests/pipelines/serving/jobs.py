"""Jobs for tests of the store."""

import dataclasses
import time
from typing import Any

from pipelines.serving.store import Job, Store


def job(number: int = 1, **changes: Any) -> Job:
    now = time.time()
    plain = Job(
        id=f"video_{number:04d}", owner="me", model="tiny", request={"prompt": "a\0b 🐈"}, lease_owner="first",
        created_at=now, request_digest=f"digest {number}",
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def keep(store: Store, *jobs: Job) -> None:
    for one in jobs:
        assert store.create(one, b"image", 1000, 1000) == (one, True)
