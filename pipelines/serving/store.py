"""Jobs in a SQL database: stored before they begin, finished exactly once, whichever process dies in between.

A job is queued, then in progress, then completed or failed, and from then on it never changes. One process, the owner
of its lease, watches it. A replica that works on it claims an attempt; reports of older attempts are ignored. When the
lease runs out, nobody works on the job, and another process takes it over.
"""

import dataclasses
import functools
import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa

from cinemo.sidecar import Request
from pipelines.serving.database import Database

Status = Literal["queued", "in_progress", "completed", "failed"]
OPEN: tuple[Status, ...] = ("queued", "in_progress")
KEPT_TOMBSTONES_S = 30 * 86_400  # for this long, a deleted id is distinguished from one that never existed
FIRST_TIME = 1_700_000_000.0  # no job is older

metadata = sa.MetaData()
# Times are seconds since 1970. The number in the names is the version of these columns.
jobs = sa.Table(
    "cinemo_jobs_2",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("progress", sa.Integer, nullable=False, default=0),  # percent
    sa.Column("request", sa.Text, nullable=False),  # JSON
    sa.Column("image", sa.LargeBinary),  # as uploaded; removed when the job ends
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("keeper", sa.String(64), key="lease_owner", nullable=False),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Column("error", sa.Text),  # JSON: code, message
    sa.Column("result", sa.Text),  # JSON: measured motion, fingerprint, timings
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_digest", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("cinemo_jobs_2_by_owner", "owner", "created_at", "id"),
    sa.Index("cinemo_jobs_2_open", "status", "lease_until"),
)
gone = sa.Table(
    "cinemo_gone_1",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
# Only the replica that animates a job reads its image.
COLUMNS = [column for column in jobs.c if column.name != "image"]


class QueueFullError(Exception):
    """Too many jobs are open. args: their number."""


class OtherRequestError(Exception):
    """The idempotency key belongs to another request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A row, without the image."""

    id: str
    owner: str
    model: str
    status: Status = "queued"
    progress: int = 0
    request: Request
    attempt: int = 0
    lease_owner: str
    lease_until: float
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    error: dict[str, str] | None = None
    result: dict[str, Any] | None = None
    idempotency_key: str | None = None
    request_digest: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the job has not ended yet."""
        return self.status in OPEN


class Store:
    """The jobs of a database. Methods may be called from any thread, and repeated if it is unknown whether they worked.

    patience: seconds to retry while the database is unavailable; then SQLAlchemy's DBAPIError is raised.
    """

    def __init__(self, url: str, patience: float = 10.0) -> None:
        self.database = Database(url, patience)
        self.database.patiently(
            lambda: metadata.create_all(self.database.engine)
        )  # retried, because another process may be creating them

    def create(self, job: Job, image: bytes, most: int, most_of_owner: int) -> tuple[Job, bool]:
        """Store a job; returns (the stored job, whether it is new).

        If the owner already has a job with the same idempotency key, that one is returned. Raises QueueFullError when
        `most` jobs are open, or `most_of_owner` of this owner, and OtherRequestError when the key belongs to another
        request.
        """

        def insert() -> tuple[Job, bool]:
            with self.database.transaction() as connection:
                if not self.database.is_sqlite:  # makes counting and adding atomic, as in SQLite
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(20260214)"))
                same = sa.and_(jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key)
                first = jobs.c.id == job.id if job.idempotency_key is None else sa.or_(jobs.c.id == job.id, same)
                if row := connection.execute(sa.select(*COLUMNS).where(first)).first():
                    if row.request_digest != job.request_digest:
                        raise OtherRequestError
                    return _job(row), row.id == job.id
                count = sa.select(sa.func.count()).where(jobs.c.status.in_(OPEN))
                num_open = connection.scalar(count) or 0
                of_owner = connection.scalar(count.where(jobs.c.owner == job.owner)) or 0
                if num_open >= most or of_owner >= most_of_owner:
                    raise QueueFullError(num_open)
                lease_s = job.lease_until - time.time()  # by this machine's clock
                values = {**_row(job), "image": image, "lease_until": self.database.now + lease_s}
                connection.execute(jobs.insert().values(values))
                return job, True

        return self.database.patiently(insert)

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """Get a job; None when there is none, or it has another owner."""
        query = sa.select(*COLUMNS).where(jobs.c.id == job_id)
        query = query if owner is None else query.where(jobs.c.owner == owner)
        row = self.database.patiently(lambda: self.database.first(query))
        return None if row is None else _job(row)

    def is_gone(self, job_id: str, owner: str) -> bool:
        """Whether a job of this owner was deleted or has expired."""
        query = sa.select(gone.c.id).where(gone.c.id == job_id, gone.c.owner == owner)
        return self.database.patiently(lambda: self.database.first(query)) is not None

    def was_deleted(self, job_id: str) -> bool:
        """Whether a job of any owner was deleted or has expired."""
        query = sa.select(gone.c.id).where(gone.c.id == job_id)
        return self.database.patiently(lambda: self.database.first(query)) is not None

    def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """List (jobs of an owner after the one with the id `after`, whether there are more).

        A job that was deleted has its place by its id. Raises KeyError for an id that tells none.
        """
        position = sa.tuple_(jobs.c.created_at, jobs.c.id)
        query = sa.select(*COLUMNS).where(jobs.c.owner == owner)
        if after is not None:
            start_query = sa.select(jobs.c.created_at, jobs.c.id).where(jobs.c.id == after, jobs.c.owner == owner)
            row = self.database.patiently(lambda: self.database.first(start_query))
            start = (time_of(after), after) if row is None else tuple(row)
            query = query.where(position < start if newest_first else position > start)
        order = [sa.desc(c) if newest_first else sa.asc(c) for c in (jobs.c.created_at, jobs.c.id)]
        rows = self.database.patiently(lambda: self.database.all(query.order_by(*order).limit(limit + 1)))
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def counts(self) -> dict[str, int]:
        """Number of jobs by status."""
        rows = self.database.patiently(
            lambda: self.database.all(sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status))
        )
        return {row[0]: row[1] for row in rows}

    def claim(self, job_id: str, lease_s: float) -> tuple[Job, bytes] | None:
        """Begin an attempt; returns (the job, with the attempt's number, its image), None if it is no longer open."""

        def take() -> tuple[Job, bytes] | None:
            with self.database.transaction() as connection:
                updated = connection.execute(
                    jobs.update()
                    .where(jobs.c.id == job_id, jobs.c.status.in_(OPEN))
                    .values(attempt=jobs.c.attempt + 1, progress=0, lease_until=self.database.now + lease_s)
                )
                if not updated.rowcount:
                    return None
                row = connection.execute(sa.select(*COLUMNS, jobs.c.image).where(jobs.c.id == job_id)).one()
                return _job(row), row.image

        return self.database.patiently(take)

    def advance(self, job_id: str, attempt: int, progress: int, lease_s: float) -> bool:
        """Store an attempt's progress in percent; False if the attempt must stop: job ended, deleted, or restarted."""
        change = (
            jobs.update()
            .where(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.status.in_(OPEN))
            .values(
                status="in_progress",
                progress=progress,
                started_at=sa.func.coalesce(jobs.c.started_at, self.database.now),
                lease_until=self.database.now + lease_s,
            )
        )
        return self.database.patiently(lambda: self.database.change(change)) > 0

    def complete(self, job_id: str, attempt: int, result: Mapping[str, Any], ttl_s: float) -> bool:
        """End a job with its result; False if the job has ended already, or has a newer attempt."""
        return self._end(job_id, attempt, ttl_s, status="completed", progress=100, result=json.dumps(result))

    def fail(self, job_id: str, attempt: int | None, code: str, message: str, ttl_s: float) -> bool:
        """End a job with an error; False as in complete. attempt None: end it whatever its attempt."""
        error = json.dumps({"code": code, "message": message})
        return self._end(job_id, attempt, ttl_s, status="failed", error=error)

    def extend(self, job_ids: Sequence[str], lease_s: float, lease_owner: str | None = None) -> None:
        """Extend the leases of these jobs; with lease_owner, only of those that it still owns."""
        if not job_ids:
            return
        mine = sa.true() if lease_owner is None else jobs.c.lease_owner == lease_owner
        change = jobs.update().where(jobs.c.id.in_(job_ids), jobs.c.status.in_(OPEN), mine)
        self.database.patiently(lambda: self.database.change(change.values(lease_until=self.database.now + lease_s)))

    def take_abandoned(self, lease_owner: str, lease_s: float) -> list[Job]:
        """Take over jobs whose lease ran out; returns them with the new lease. Each goes to one caller."""
        abandoned = (
            sa.select(*COLUMNS)
            .where(jobs.c.status.in_(OPEN), jobs.c.lease_until < self.database.now)
            .order_by(jobs.c.created_at)
        )
        taken = []
        for row in self.database.patiently(lambda: self.database.all(abandoned)):
            change = jobs.update().where(jobs.c.id == row.id, jobs.c.lease_until == row.lease_until)
            change = change.where(jobs.c.status.in_(OPEN)).values(
                lease_owner=lease_owner, lease_until=self.database.now + lease_s
            )
            if self.database.patiently(functools.partial(self.database.change, change)):
                taken.append(dataclasses.replace(_job(row), lease_owner=lease_owner))
        return taken

    def delete(self, job_id: str, owner: str) -> Job | None:
        """Delete a job, running or not; returns it, or None if the owner has no such job."""
        return next(iter(self._delete_with_tombstone(sa.and_(jobs.c.id == job_id, jobs.c.owner == owner))), None)

    def delete_expired(self) -> list[Job]:
        """Delete expired jobs, and return them; delete old tombstones too."""
        self.database.patiently(
            lambda: self.database.change(gone.delete().where(gone.c.at < self.database.now - KEPT_TOMBSTONES_S))
        )
        return self._delete_with_tombstone(sa.and_(jobs.c.expires_at < self.database.now, jobs.c.status.not_in(OPEN)))

    def _delete_with_tombstone(self, which: Any) -> list[Job]:
        def move() -> list[Job]:
            with self.database.transaction() as connection:
                rows = connection.execute(sa.select(*COLUMNS).where(which)).all()
                for row in rows:
                    if connection.execute(jobs.delete().where(jobs.c.id == row.id)).rowcount:
                        connection.execute(gone.insert().values(id=row.id, owner=row.owner, at=self.database.now))
                return [_job(row) for row in rows]

        return self.database.patiently(move)

    def _end(self, job_id: str, attempt: int | None, ttl_s: float, **values: Any) -> bool:
        which = sa.and_(jobs.c.id == job_id, sa.true() if attempt is None else jobs.c.attempt == attempt)
        change = jobs.update().where(which, jobs.c.status.in_(OPEN))
        change = change.values(ended_at=self.database.now, expires_at=self.database.now + ttl_s, image=None, **values)
        again = sa.select(jobs.c.id).where(which, *(jobs.c[name] == value for name, value in values.items()))

        def end() -> bool:  # may be repeated with the same values: the first answer may have been lost
            return self.database.change(change) > 0 or (attempt is not None and self.database.first(again) is not None)

        return self.database.patiently(end)


def new_id(created_at: float) -> str:
    """Make the id of a job. It starts with its time, so that a list can go on after one that was deleted."""
    return f"video_{round(created_at * 1000):012x}{uuid.uuid4().hex[12:]}"


def time_of(job_id: str) -> float:
    """Time of creation in an id, in seconds since 1970. Raises KeyError for another text."""
    seconds = int(job_id[6:18], 16) / 1000 if re.fullmatch("video_[0-9a-f]{32}", job_id) else 0
    if not FIRST_TIME < seconds < time.time() + 3600:  # ids were random once
        raise KeyError(job_id)
    return seconds


def _row(job: Job) -> dict[str, Any]:
    texts = {name: json.dumps(value) for name in ("request", "error", "result") if (value := getattr(job, name))}
    return {column.key: getattr(job, column.key) for column in COLUMNS} | texts


def _job(row: Any) -> Job:
    values = {column.key: row._mapping[column] for column in COLUMNS}
    for name in ("request", "error", "result"):
        values[name] = json.loads(values[name]) if values[name] else None
    return Job(**values)
