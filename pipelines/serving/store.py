"""Jobs in a SQL database: stored before they begin, finished exactly once, whichever process dies in between.

A job is queued, then in progress, then completed or failed, and from then on it never changes. An ingress watches it;
when the lease of that ingress expires, another one takes its jobs over. A replica claims an attempt, which has its own
lease: until that expires, or the replica releases it, no other replica can claim one. Reports of older attempts are
ignored.

When a replica dies, its attempts are released (dispatch.py) or their leases expire; the jobs are queued again and the
death is counted. After a death a job is only claimed alone, so that it takes no others along. It fails after two deaths
while it was alone, or settings.max_attempts deaths in all (replica.py).
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa

from pipelines.serving.jobs import tables, webhook_events
from pipelines.serving.jobs.database import Database, locked
from pipelines.serving.jobs.ids import time_of
from pipelines.serving.jobs.job import OPEN, Job, from_row, to_row
from pipelines.serving.jobs.tables import images, ingresses, jobs, lines, tombstones

Death = Literal["none", "device", "process"]  # why an attempt ended without a result; "none" is not counted
LONG_QUEUE = 10_000  # from this limit on, the queue's length is not counted for every job, and may exceed it a little
COUNTED_FOR_S = 30.0  # seconds for which the last count of the queue may be used
MAX_ROWS = 1000  # rows that one statement takes over or deletes, so that it ends within seconds
KEPT_TOMBSTONES_S = 30 * 86_400  # for this long, a deleted id is distinguished from one that never existed


class QueueFullError(Exception):
    """Too many jobs are open. args: their number."""


class OtherRequestError(Exception):
    """The idempotency key belongs to another request."""


class Store:
    """The jobs of a database. Methods may be called from any thread, and repeated if it is unknown whether they worked.

    patience: seconds to retry while the database is unavailable; then one of database.UNAVAILABLE is raised.
    """

    def __init__(self, url: str, patience: float = 10.0) -> None:
        self.database = Database(url, patience)
        self.database.patiently(lambda: tables.create(self.database.engine))
        self.counted: dict[str, int] = {}  # open jobs by owner, when they were last counted
        self.counted_at = float("-inf")
        self.last_counts: tuple[float, dict[str, int]] = (float("-inf"), {})  # when, what

    def create(self, job: Job, image: bytes, most: int, most_of_owner: int) -> tuple[Job, bool]:
        """Store a job; returns (the stored job, whether it is new).

        If the owner already has a job with the same idempotency key, that one is returned. Raises QueueFullError when
        `most` jobs are open, or `most_of_owner` of this owner, and OtherRequestError when the key belongs to another
        request.
        """
        has_room = self._has_room_by_last_count(job.owner, most, most_of_owner)

        def insert() -> tuple[Job, bool]:
            with self.database.transaction() as connection:
                if not self.database.is_sqlite and not has_room:  # makes counting and adding atomic, as in SQLite
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(20260214)"))
                same = sa.and_(jobs.c.owner == job.owner, jobs.c.idempotency_key == job.idempotency_key)
                first = jobs.c.id == job.id if job.idempotency_key is None else sa.or_(jobs.c.id == job.id, same)
                if row := connection.execute(sa.select(jobs).where(first)).first():
                    if row.request_digest != job.request_digest:
                        raise OtherRequestError
                    return from_row(row), row.id == job.id
                if not has_room:
                    of_owner = sa.func.count().filter(jobs.c.owner == job.owner)
                    count = sa.select(sa.func.count(), of_owner).where(jobs.c.status.in_(OPEN))
                    num_open, own = connection.execute(count).one()
                    if num_open >= most or own >= most_of_owner:
                        raise QueueFullError(num_open)
                connection.execute(jobs.insert().values(to_row(job)))
                connection.execute(images.insert().values(id=job.id, image=image))
                return job, True

        return self.database.patiently(insert)

    def count_open(self) -> None:
        """Count the open jobs. Call it regularly, so that `create` need not count while a long queue has room."""
        count = sa.select(jobs.c.owner, sa.func.count()).where(jobs.c.status.in_(OPEN)).group_by(jobs.c.owner)
        self.counted = {row[0]: row[1] for row in self.database.patiently(lambda: self.database.all(count))}
        self.counted_at = time.monotonic()

    def count_of_others(self, lease_owner: str) -> dict[str, int]:
        """Number of open jobs that other ingresses watch, by model."""
        count = sa.select(jobs.c.model, sa.func.count()).group_by(jobs.c.model)
        count = count.where(jobs.c.status.in_(OPEN), jobs.c.lease_owner != lease_owner)
        return {row[0]: row[1] for row in self.database.patiently(lambda: self.database.all(count))}

    def _has_room_by_last_count(self, owner: str, most: int, most_of_owner: int) -> bool:
        if min(most, most_of_owner) < LONG_QUEUE or time.monotonic() > self.counted_at + COUNTED_FOR_S:
            return False
        return sum(self.counted.values()) < 0.9 * most and self.counted.get(owner, 0) < 0.9 * most_of_owner

    def get(self, job_id: str) -> Job | None:
        """Get a job of any owner; None when there is none."""
        return next(iter(self.get_all([job_id])), None)

    def find_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        """Get the job of an owner's request with this idempotency key; None if there is none."""
        query = sa.select(jobs).where(jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key)
        row = self.database.patiently(lambda: self.database.first(query))
        return None if row is None else from_row(row)

    def get_all(self, job_ids: Sequence[str]) -> list[Job]:
        """Get jobs of any owner, the oldest first; those that do not exist are left out."""
        rows: list[Any] = []
        for first in range(0, len(job_ids), MAX_ROWS):  # because databases limit the parameters of a query
            query = sa.select(jobs).where(jobs.c.id.in_(job_ids[first : first + MAX_ROWS]))
            rows += self.database.patiently(partial(self.database.all, query))
        return [from_row(row) for row in sorted(rows, key=lambda row: row.created_at)]

    def is_gone(self, job_id: str, owner: str) -> bool:
        """Whether a job of this owner was deleted or has expired."""
        query = sa.select(tombstones.c.id).where(tombstones.c.id == job_id, tombstones.c.owner == owner)
        return self.database.patiently(lambda: self.database.first(query)) is not None

    def deleted(self, job_ids: Sequence[str]) -> set[str]:
        """Find which of these jobs, of any owner, were deleted or have expired."""
        query = sa.select(tombstones.c.id).where(tombstones.c.id.in_(job_ids))
        return {row.id for row in self.database.patiently(lambda: self.database.all(query))} if job_ids else set()

    def page(self, owner: str, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """List (jobs of an owner after the one with the id `after`, whether there are more).

        The id of a deleted job gives its position. Raises KeyError for an id that gives none.
        """
        position = sa.tuple_(jobs.c.created_at, jobs.c.id)
        query = sa.select(jobs).where(jobs.c.owner == owner)
        if after is not None:
            start_query = sa.select(jobs.c.created_at, jobs.c.id).where(jobs.c.id == after, jobs.c.owner == owner)
            row = self.database.patiently(lambda: self.database.first(start_query))
            start = (time_of(after), after) if row is None else tuple(row)
            query = query.where(position < start if newest_first else position > start)
        order = [sa.desc(c) if newest_first else sa.asc(c) for c in (jobs.c.created_at, jobs.c.id)]
        rows = self.database.patiently(lambda: self.database.all(query.order_by(*order).limit(limit + 1)))
        return [from_row(row) for row in rows[:limit]], len(rows) > limit

    def counts(self, max_age_s: float = 0.0) -> dict[str, int]:
        """Number of jobs by status. max_age_s: seconds for which an earlier result may be returned again."""
        counted_at, counts = self.last_counts
        if time.monotonic() - counted_at >= max_age_s:
            query = sa.select(jobs.c.status, sa.func.count()).group_by(jobs.c.status)
            counts = {row[0]: row[1] for row in self.database.patiently(lambda: self.database.all(query))}
            self.last_counts = (time.monotonic(), counts)
        return counts

    def claim(self, job_id: str, replica: str, lease_s: float, alone: bool) -> tuple[Job, bytes] | None:
        """Begin an attempt; returns (the job, with the attempt's number, its image).

        None if the job has ended, if an attempt of another replica is running, or if an earlier attempt ended by a
        death and this one is not alone. An attempt of another replica whose lease expired counts as a death.
        """
        by_another = sa.and_(jobs.c.replica.is_not(None), jobs.c.replica != replica)
        if alone:
            free = sa.or_(sa.not_(by_another), jobs.c.lease_until < self.database.now)
        else:
            free = sa.and_(sa.not_(by_another), jobs.c.deaths == 0)
        begin = jobs.update().where(jobs.c.id == job_id, jobs.c.status.in_(OPEN), free)
        begin = begin.values(
            attempt=jobs.c.attempt + 1,
            progress=0,
            replica=replica,
            alone=int(alone),
            deaths=jobs.c.deaths + sa.case((by_another, 1), else_=0),
            lone_deaths=jobs.c.lone_deaths + sa.case((by_another, jobs.c.alone), else_=0),
            lease_until=self.database.now + lease_s,
        )

        def take() -> tuple[Job, bytes] | None:
            with self.database.transaction() as connection:
                row = connection.execute(begin.returning(*jobs.c)).first()
                image = sa.select(images.c.image).where(images.c.id == job_id)
                return None if row is None else (from_row(row), connection.execute(image).scalar_one())

        return self.database.patiently(take)

    def advance(self, job_id: str, attempt: int, progress: int, lease_s: float, preview: str | None = None) -> bool:
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
        if preview is not None:  # a picture in base64, which is the result until the job ends
            change = change.values(result=json.dumps({"preview": preview}))
        return self.database.patiently(lambda: self.database.change(change)) > 0

    def complete(self, job_id: str, attempt: int, result: Mapping[str, Any], ttl_s: float) -> bool:
        """End a job with its result; False if the job has ended already, or has a newer attempt."""
        return self._end(job_id, attempt, ttl_s, status="completed", progress=100, result=json.dumps(result))

    def fail(self, job_id: str, attempt: int | None, code: str, message: str, ttl_s: float) -> bool:
        """End a job with an error; False as in complete. attempt None: end it whatever its attempt."""
        error = json.dumps({"code": code, "message": message})
        return self._end(job_id, attempt, ttl_s, status="failed", error=error, result=None)

    def release(self, job_id: str, replica: str, death: Death = "none") -> None:
        """End a replica's attempt without a result, so that the job is queued again. Only deaths are counted.

        The death of a process counts as a lone death if the attempt was alone; that of a device never does.
        """
        change = jobs.update().where(jobs.c.id == job_id, jobs.c.replica == replica, jobs.c.status.in_(OPEN))
        change = change.values(status="queued", progress=0, replica=None)
        if death != "none":
            change = change.values(deaths=jobs.c.deaths + 1)
        if death == "process":
            change = change.values(lone_deaths=jobs.c.lone_deaths + jobs.c.alone)
        self.database.patiently(lambda: self.database.change(change))

    def renew_attempts(self, job_ids: Collection[str], replica: str, lease_s: float) -> None:
        """Renew the leases of a replica's attempts at these jobs."""
        if not job_ids:
            return
        change = jobs.update().where(jobs.c.id.in_(job_ids), jobs.c.replica == replica, jobs.c.status.in_(OPEN))
        self.database.patiently(lambda: self.database.change(change.values(lease_until=self.database.now + lease_s)))

    def renew(self, lease_owner: str, lease_s: float) -> None:
        """Renew the lease of an ingress, which covers all jobs that it watches."""
        until = self.database.now + lease_s

        def renew_or_insert() -> None:
            with self.database.transaction() as connection:
                change = ingresses.update().where(ingresses.c.name == lease_owner).values(lease_until=until)
                if not connection.execute(change).rowcount:
                    connection.execute(ingresses.insert().values(name=lease_owner, lease_until=until))

        self.database.patiently(renew_or_insert)

    def take_abandoned(self, lease_owner: str) -> int:
        """Take over jobs of ingresses whose lease expired, oldest first; returns their number. None is taken twice."""
        alive = sa.select(ingresses.c.name).where(ingresses.c.lease_until > self.database.now)
        abandoned = sa.select(jobs.c.id).where(jobs.c.status.in_(OPEN), jobs.c.lease_owner.not_in(alive))
        oldest = locked(abandoned.order_by(jobs.c.created_at), MAX_ROWS)
        change = jobs.update().where(jobs.c.id.in_(oldest)).values(lease_owner=lease_owner)
        return self.database.patiently(lambda: self.database.change(change))

    def jobs_to_watch(self, lease_owner: str, known: Collection[str]) -> list[Job]:
        """Open jobs that this ingress should watch and that are not `known` to it: MAX_ROWS of them at most."""
        ids = sa.select(jobs.c.id).where(jobs.c.status.in_(OPEN), jobs.c.lease_owner == lease_owner)
        found = self.database.patiently(lambda: self.database.all(ids))
        return self.get_all([row.id for row in found if row.id not in known][:MAX_ROWS])

    def delete(self, job_id: str, owner: str) -> Job | None:
        """Delete a job, running or not; returns it, or None if the owner has no such job."""
        return next(iter(self._delete_with_tombstone(sa.and_(jobs.c.id == job_id, jobs.c.owner == owner))), None)

    def delete_expired(self) -> list[Job]:
        """Delete expired jobs, and return them; delete old tombstones too. MAX_ROWS of each at most.

        Videos of a batch are kept until it has ended (Batches.finish).
        """
        old = sa.select(tombstones.c.id).where(tombstones.c.at < self.database.now - KEPT_TOMBSTONES_S).limit(MAX_ROWS)
        self.database.patiently(lambda: self.database.change(tombstones.delete().where(tombstones.c.id.in_(old))))
        lost = ingresses.delete().where(ingresses.c.lease_until < self.database.now - KEPT_TOMBSTONES_S)
        self.database.patiently(lambda: self.database.change(lost))
        expired = sa.select(jobs.c.id).where(jobs.c.expires_at < self.database.now, jobs.c.status.not_in(OPEN))
        unrecorded = sa.and_(lines.c.job.is_not(None), lines.c.outcome.is_(None))
        expired = expired.where(jobs.c.id.not_in(sa.select(lines.c.job).where(sa.or_(lines.c.ok == 1, unrecorded))))
        return self._delete_with_tombstone(jobs.c.id.in_(locked(expired, MAX_ROWS)))

    def _delete_with_tombstone(self, which: Any) -> list[Job]:
        def move() -> list[Job]:
            with self.database.transaction() as connection:
                rows = connection.execute(jobs.delete().where(which).returning(*jobs.c)).all()
                if rows:
                    connection.execute(images.delete().where(images.c.id.in_([row.id for row in rows])))
                    insert = tombstones.insert().values(at=self.database.now)
                    connection.execute(insert, [{"id": row.id, "owner": row.owner} for row in rows])
                return [from_row(row) for row in rows]

        return self.database.patiently(move)

    def _end(self, job_id: str, attempt: int | None, ttl_s: float, **values: Any) -> bool:
        which = sa.and_(jobs.c.id == job_id, sa.true() if attempt is None else jobs.c.attempt == attempt)
        change = jobs.update().where(which, jobs.c.status.in_(OPEN))
        change = change.values(ended_at=self.database.now, expires_at=self.database.now + ttl_s, **values)
        again = sa.select(jobs.c.id).where(which, *(jobs.c[name] == value for name, value in values.items()))

        def end() -> bool:  # may be repeated with the same values: the first answer may have been lost
            with self.database.transaction() as connection:
                row = connection.execute(change.returning(jobs.c.webhook, jobs.c.owner)).first()
                if row is None:
                    return attempt is not None and connection.execute(again).first() is not None
                connection.execute(images.delete().where(images.c.id == job_id))
                if row.webhook is not None:
                    kind = f"video.{values['status']}"
                    webhook_events.add(connection, self.database.now, kind, job_id, row.webhook, row.owner)
                return True

        return self.database.patiently(end)
