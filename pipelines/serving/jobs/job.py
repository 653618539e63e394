"""A job of the service, and its row in the database."""

import dataclasses
import json
from typing import Any, Literal

from cinemo.sidecar import Request
from pipelines.serving.jobs.tables import jobs

Status = Literal["queued", "in_progress", "completed", "failed"]
OPEN: tuple[Status, ...] = ("queued", "in_progress")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the table of jobs."""

    id: str
    owner: str
    model: str
    status: Status = "queued"
    progress: int = 0
    request: Request
    attempt: int = 0
    lease_owner: str
    lease_until: float = 0.0
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    error: dict[str, str] | None = None
    result: dict[str, Any] | None = None
    idempotency_key: str | None = None
    request_digest: str | None = None
    sent_digest: str | None = None
    replica: str | None = None
    alone: int = 0  # 1 if the attempt is the only job of its batch
    deaths: int = 0  # attempts that ended because a process or a device died
    lone_deaths: int = 0  # those of a process, while the attempt was alone
    webhook: str | None = None  # URL that is told of the end; empty: that of the settings

    @property
    def is_open(self) -> bool:
        """Whether the job has not ended yet."""
        return self.status in OPEN


def to_row(job: Job) -> dict[str, Any]:
    """Values of the columns for a job."""
    texts = {name: json.dumps(value) for name in ("request", "error", "result") if (value := getattr(job, name))}
    return {column.key: getattr(job, column.key) for column in jobs.c} | texts


def from_row(row: Any) -> Job:
    """The job of a row with all columns."""
    values = {column.key: row._mapping[column] for column in jobs.c}
    for name in ("request", "error", "result"):
        values[name] = json.loads(values[name]) if values[name] else None
    return Job(**values)
