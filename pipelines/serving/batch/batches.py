"""Batches: files of requests for videos, as rows of the database; runner.py works on them."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from pydantic import BaseModel, Field

from pipelines.serving.http.errors import ApiError
from pipelines.serving.jobs import webhook_events
from pipelines.serving.jobs.database import Database, locked
from pipelines.serving.jobs.tables import batches, jobs, lines
from pipelines.serving.settings import ServeSettings

ACTIVE = ("validating", "in_progress", "cancelling")
MOST_ACTIVE = 20  # batches of an owner
TAKEN_AT_ONCE = 8
READ_AT_ONCE = 500  # outcomes that are read from the database at a time, a few KB each


class Counts(BaseModel):
    """Requests of a batch."""

    total: int
    completed: int
    failed: int = Field(description="requests that were refused or failed")


class Batch(BaseModel):
    """A batch, in OpenAI's shape."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Literal["/v1/videos"] = "/v1/videos"
    errors: dict[str, Any] | None = Field(description="invalid lines of the file; then no request was sent")
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal["validating", "in_progress", "cancelling", "completed", "failed", "cancelled"]
    output_file_id: str | None = Field(description="file of the completed videos")
    error_file_id: str | None = Field(description="file of the requests without a video")
    created_at: int
    completed_at: int | None = None
    failed_at: int | None = None
    cancelled_at: int | None = None
    expires_at: int = Field(description="seconds since 1970; then the batch is deleted")
    request_counts: Counts
    metadata: dict[str, str] | None


class Line(NamedTuple):
    """A request of a batch. job: null if it was refused. outcome: a line of the output; null: it has not ended."""

    number: int
    job: str | None
    outcome: str | None
    ok: int


class Batches:
    """The batches of a database. Methods may be called from any thread, and repeated."""

    def __init__(self, settings: ServeSettings, database: Database) -> None:
        self.settings, self.database = settings, database

    def create(self, batch_id: str, owner: str, file_id: str, notes: Mapping[str, str] | None) -> Batch:
        """Store a batch. Raises ApiError (429) when MOST_ACTIVE of the owner's have not ended."""
        now = self.database.now
        values = {
            "id": batch_id, "owner": owner, "input_file_id": file_id, "status": "validating", "created_at": now,
            "total": 0, "completed": 0, "failed": 0, "lease_until": 0.0, "notes": notes and json.dumps(dict(notes)),
            "expires_at": now + self.settings.file_ttl_s,
        }  # fmt: skip

        def insert() -> Batch:
            with self.database.transaction() as connection:
                if row := connection.execute(sa.select(batches).where(batches.c.id == batch_id)).first():
                    return to_object(row)
                self.database.advisory_lock(connection, f"batches of {owner}")
                active = sa.select(sa.func.count()).where(batches.c.owner == owner, batches.c.status.in_(ACTIVE))
                if connection.execute(active).scalar_one() >= MOST_ACTIVE:
                    sentence = f"{MOST_ACTIVE} batches have not ended yet; wait for one of them"
                    raise ApiError(429, sentence, code="queue_full", headers={"Retry-After": "60"})
                insert = batches.insert().values(values).returning(*batches.c)
                return to_object(connection.execute(insert).one())

        return self.database.patiently(insert)

    def find(self, batch_id: str, owner: str) -> Batch:
        """Find a batch of this owner. Raises ApiError (404)."""
        row = None
        if re.fullmatch("batch_[0-9a-f]{32}", batch_id):
            query = sa.select(batches).where(batches.c.id == batch_id, batches.c.owner == owner)
            row = self.database.patiently(lambda: self.database.first(query))
        if row is None:
            raise ApiError(404, f"batch {batch_id[:80]} does not exist", "batch_id", "batch_not_found")
        return to_object(row)

    def page(self, owner: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """List (batches of an owner, newest first, whether there are more). Raises ApiError (404)."""
        position = sa.tuple_(batches.c.created_at, batches.c.id)
        query = sa.select(batches).where(batches.c.owner == owner)
        if after is not None:
            self.find(after, owner)
            start = sa.select(batches.c.created_at, batches.c.id).where(batches.c.id == after)
            query = query.where(position < tuple(self.database.patiently(lambda: self.database.first(start))))
        query = query.order_by(batches.c.created_at.desc(), batches.c.id.desc()).limit(limit + 1)
        rows = self.database.patiently(lambda: self.database.all(query))
        return [to_object(row) for row in rows[:limit]], len(rows) > limit

    def cancel(self, batch_id: str, owner: str) -> None:
        """Ask for the end of a batch; one that has ended is left as it is. Raises ApiError (404)."""
        self.find(batch_id, owner)
        change = batches.update().where(batches.c.id == batch_id, batches.c.status.in_(ACTIVE))
        self.database.patiently(lambda: self.database.change(change.values(status="cancelling")))

    def take(self, lease_owner: str, lease_s: float) -> list[tuple[Batch, str]]:
        """Take batches on which no process works; returns each with its owner."""
        idle = sa.select(batches.c.id).where(batches.c.status.in_(ACTIVE), batches.c.lease_until < self.database.now)
        idle = idle.order_by(batches.c.created_at)
        if self.database.first(idle.limit(1)) is None:
            return []
        take = batches.update().where(batches.c.id.in_(locked(idle, TAKEN_AT_ONCE)))
        take = take.values(lease_owner=lease_owner, lease_until=self.database.now + lease_s)
        with self.database.transaction() as connection:
            return [(to_object(row), row.owner) for row in connection.execute(take.returning(*batches.c))]

    def renew(self, batch_id: str, lease_owner: str, lease_s: float, counts: Counts) -> str | None:
        """Renew a process's lease of a batch and store its counts; returns the status, None if it is not its batch."""
        mine = batches.update().where(batches.c.id == batch_id, batches.c.lease_owner == lease_owner)
        until = self.database.now + lease_s
        status = sa.case((batches.c.status == "validating", "in_progress"), else_=batches.c.status)
        change = mine.where(batches.c.status.in_(ACTIVE)).values(status=status, lease_until=until, **dict(counts))
        with self.database.transaction() as connection:
            return connection.execute(change.returning(batches.c.status)).scalar_one_or_none()

    def renew_lease(self, batch_id: str, lease_owner: str, lease_s: float) -> None:
        """Renew a process's lease of a batch for `lease_s` seconds, if the process still holds it."""
        mine = batches.update().where(batches.c.id == batch_id, batches.c.lease_owner == lease_owner)
        change = mine.where(batches.c.status.in_(ACTIVE)).values(lease_until=self.database.now + lease_s)
        self.database.change(change)

    def lines(self, batch_id: str) -> list[Line]:
        """Read the lines that were sent, in order. To save memory, "" stands for an outcome (see `outcomes`)."""
        ended = sa.case((lines.c.outcome.is_not(None), ""), else_=sa.null())
        query = sa.select(lines.c.number, lines.c.job, ended, lines.c.ok).where(lines.c.batch == batch_id)
        return [Line(*row) for row in self.database.all(query.order_by(lines.c.number))]

    def outcomes(self, batch_id: str, ok: int) -> Iterator[str]:
        """Yield the outcomes that belong in a batch's output (ok: 1) or in its errors (0), in order of the lines."""
        after = -1
        mine = sa.select(lines.c.number, lines.c.outcome).where(lines.c.batch == batch_id, lines.c.ok == ok)
        query = mine.where(lines.c.outcome.is_not(None)).order_by(lines.c.number).limit(READ_AT_ONCE)
        while rows := self.database.all(query.where(lines.c.number > after)):
            yield from (row.outcome for row in rows)
            after = rows[-1].number

    def record(self, batch_id: str, line: Line) -> None:
        """Store a line, in place of what is stored of it. Raises RuntimeError if the batch has ended meanwhile."""
        values = line._asdict()
        change = lines.update().where(lines.c.batch == batch_id, lines.c.number == line.number).values(values)
        with self.database.transaction() as connection:
            if not connection.execute(change).rowcount:
                active = sa.select(batches.c.id).where(batches.c.id == batch_id, batches.c.status.in_(ACTIVE))
                if connection.execute(active.with_for_update()).first() is None:  # a line now would never be deleted
                    raise RuntimeError(f"another process has ended {batch_id}")
                connection.execute(lines.insert().values(batch=batch_id, **values))

    def finish(self, batch_id: str, lease_owner: str, status: str, **values: Any) -> None:
        """End a process's batch, and forget its lines; its videos expire `ttl_s` after it. values: further columns."""
        mine = batches.update().where(batches.c.id == batch_id, batches.c.lease_owner == lease_owner)
        change = mine.where(batches.c.status.in_(ACTIVE))
        with self.database.transaction() as connection:
            if connection.execute(change.values(status=status, ended_at=self.database.now, **values)).rowcount:
                made = sa.select(lines.c.job).where(lines.c.batch == batch_id, lines.c.ok == 1)
                until = self.database.now + self.settings.ttl_s
                connection.execute(jobs.update().where(jobs.c.id.in_(made)).values(expires_at=until))
                connection.execute(lines.delete().where(lines.c.batch == batch_id))
                if self.settings.webhooks.url is not None:
                    webhook_events.add(connection, self.database.now, f"batch.{status}", batch_id, "", "")

    def delete_expired(self) -> None:
        """Delete batches that have ended and expired."""
        is_old = batches.c.expires_at < self.database.now
        self.database.change(batches.delete().where(is_old, batches.c.status.not_in(ACTIVE)))


def to_object(row: Any) -> Batch:
    """The object that clients see of a row."""
    same = ("id", "input_file_id", "status", "output_file_id", "error_file_id")
    values = {name: row._mapping[batches.c[name]] for name in same}
    if row.ended_at is not None:
        values[f"{row.status}_at"] = int(row.ended_at)
    return Batch(
        **values,
        created_at=int(row.created_at),
        expires_at=int(row.expires_at),
        errors=row.errors and {"object": "list", "data": json.loads(row.errors)},
        request_counts=Counts(total=row.total, completed=row.completed, failed=row.failed),
        metadata=row._mapping[batches.c.notes] and json.loads(row._mapping[batches.c.notes]),
    )
