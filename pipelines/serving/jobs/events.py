"""Events: ends of jobs and batches that a webhook's receiver has not been told yet, as rows of the database.

An event is added in the transaction that ends its job, and is deleted once it has been delivered. So none is lost when
a process dies; the receiver may get one twice, with the same id.
"""

from typing import Any, NamedTuple

import sqlalchemy as sa

from pipelines.serving.jobs.database import Database, locked
from pipelines.serving.jobs.tables import events

LONGEST_PAUSE_S = 3600.0  # between two tries


class Event(NamedTuple):
    """A row that is due. subject: id of the job or batch. url: empty for that of the settings."""

    id: str
    type: str
    subject: str
    url: str
    created_at: float
    tries: int


def add(connection: sa.Connection, now: Any, event_type: str, subject: str, url: str) -> None:
    """Add an event in a transaction. now: the database's time, as SQL."""
    event_id = f"evt_{subject.rpartition('_')[2]}"  # a job ends once
    values = {"id": event_id, "type": event_type, "subject": subject, "url": url, "created_at": now, "next_at": now}
    connection.execute(events.insert().values(values))


def take_due(database: Database, most: int, first_pause_s: float) -> list[Event]:
    """Take at most `most` events that are due, the oldest first, and set the time of their next try.

    So nothing needs to be written when a try fails, or its process dies. The pause doubles with each try.
    """
    due = sa.select(events.c.id).where(events.c.next_at <= database.now).order_by(events.c.next_at)
    if database.first(due.limit(1)) is None:  # usually; and reading locks nothing
        return []
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
