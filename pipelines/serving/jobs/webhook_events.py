"""Events: ends of jobs and batches that a webhook's receiver has not been told yet, as rows of the database.

An event is added in the transaction that ends its job, and is deleted once it has been delivered. So none is lost when
a process dies; the receiver may get one twice, with the same id.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from pipelines.serving.jobs.database import Database, locked
from pipelines.serving.jobs.tables import events

LONGEST_PAUSE_S = 3600.0  # between two tries


class Event(NamedTuple):
    """A row that is due.

    subject: id of the job or batch. url: empty for that of the settings. owner: of the job, if its request named the
    URL; else empty.
    """

    id: str
    type: str
    subject: str
    url: str
    created_at: float
    tries: int
    owner: str = ""


def add(connection: sa.Connection, now: Any, event_type: str, subject: str, url: str, owner: str) -> None:
    """Add an event in a transaction. now: the database's time, as SQL. owner: of the job or batch."""
    event_id = f"evt_{subject.rpartition('_')[2]}"  # a job ends once
    values = {"id": event_id, "type": event_type, "subject": subject, "url": url, "owner": owner if url else ""}
    connection.execute(events.insert().values(**values, created_at=now, next_at=now))


def take_due(
    database: Database,
    most: int,
    first_pause_s: float,
    most_of_owner: int = 1 << 30,
    running: Mapping[str, int] | None = None,
) -> list[Event]:
    """Take at most `most` events that are due, and set the time of their next try.

    So nothing needs to be written when a try fails, or its process dies. The pause doubles with each try.

    most_of_owner: most deliveries of an owner at a time. running: number of each owner's deliveries that run already.
    Events of owners with fewer deliveries come first; of these, the oldest.
    """
    is_due = events.c.next_at <= database.now
    if database.first(sa.select(events.c.id).where(is_due).limit(1)) is None:  # usually; and reading locks nothing
        return []
    number = sa.func.row_number().over(partition_by=events.c.owner, order_by=events.c.next_at)
    before = sa.case(dict(running), value=events.c.owner, else_=0) if running else sa.literal(0)
    numbered = sa.select(events.c.id, (number + before).label("number")).where(is_due).subquery()
    due = sa.select(events.c.id).join(numbered, numbered.c.id == events.c.id)
    # is_due again: PostgreSQL checks it once more after locking a row, which another process may have taken meanwhile.
    due = due.where(is_due, numbered.c.number <= most_of_owner).order_by(numbered.c.number, events.c.next_at)
    pauses = {tries: min(first_pause_s * 2**tries, LONGEST_PAUSE_S) for tries in range(20)}
    pause = sa.case(pauses, value=events.c.tries, else_=LONGEST_PAUSE_S)
    take = events.update().where(events.c.id.in_(locked(due, most)))
    take = take.values(tries=events.c.tries + 1, next_at=database.now + pause)
    columns = [events.c[name] for name in Event._fields]
    with database.transaction() as connection:
        return [Event(*row) for row in connection.execute(take.returning(*columns))]


def delivered(database: Database, event_id: str) -> None:
    """Delete an event that its receiver has got."""
    database.change(events.delete().where(events.c.id == event_id))


def give_up(database: Database, event_id: str, after_s: float) -> bool:
    """Delete an event that is older than `after_s` seconds; returns whether it was."""
    is_old = events.c.created_at < database.now - after_s
    return database.change(events.delete().where(events.c.id == event_id, is_old)) > 0


def count(database: Database) -> int:
    """Number of events that are not delivered."""
    return int(database.first(sa.select(sa.func.count()).select_from(events))[0])
