"""Jobs in SQLite and in a real PostgreSQL: kept, claimed, finished once, found again, forgotten on time."""

import asyncio
import threading
import time

import pytest
import sqlalchemy as sa

from pipelines.serving import store as stores
from pipelines.serving.jobs import tables
from pipelines.serving.polling import SharedQuery
from pipelines.serving.store import OtherRequestError, QueueFullError, Store
from tests.pipelines.serving.jobs import job, keep


def test_a_job_goes_from_queued_to_completed_and_then_never_changes(store: Store) -> None:
    keep(store, job())
    found = store.claim("video_0001", "r", 60, alone=True)
    assert found is not None
    claimed, image = found
    assert (claimed.attempt, claimed.status, claimed.request, image) == (1, "queued", {"prompt": "a\0b 🐈"}, b"image")
    assert store.advance("video_0001", 1, 40, 60)
    running = store.get("video_0001")
    assert running is not None
    assert (running.status, running.progress) == ("in_progress", 40)
    assert running.started_at is not None
    assert store.complete("video_0001", 1, {"score": 0.5}, ttl_s=100)
    assert store.complete("video_0001", 1, {"score": 0.5}, ttl_s=100)  # its answer was lost: the same again
    done = store.get("video_0001")
    assert done is not None
    assert (done.status, done.progress, done.result) == ("completed", 100, {"score": 0.5})
    assert done.ended_at is not None
    assert done.expires_at == pytest.approx(done.ended_at + 100)

    assert not store.complete("video_0001", 1, {"score": 0.6}, ttl_s=100)
    assert not store.fail("video_0001", None, "cancelled", "too late", ttl_s=100)
    assert not store.advance("video_0001", 1, 50, 60)
    assert store.claim("video_0001", "r", 60, alone=True) is None
    assert store.get("video_0001") == done


def test_only_the_newest_attempt_is_heard(store: Store) -> None:
    keep(store, job())
    for attempt in (1, 2):
        found = store.claim("video_0001", "r", 60, alone=True)
        assert found is not None
        assert found[0].attempt == attempt
    assert not store.advance("video_0001", 1, 10, 60)
    assert not store.complete("video_0001", 1, {}, ttl_s=1)
    assert not store.fail("video_0001", 1, "server_error", "old", ttl_s=1)
    assert store.complete("video_0001", 2, {"by": 2}, ttl_s=100)
    assert not store.complete("video_0001", 1, {"by": 1}, ttl_s=100)


def test_a_key_gives_the_first_job_and_refuses_another_request(store: Store) -> None:
    first = job(1, idempotency_key="k", request_digest="same")
    keep(store, first)
    again = job(2, idempotency_key="k", request_digest="same")
    found, is_new = store.create(again, b"image", 1, 1)  # even when the queue is full
    assert (found.id, is_new) == ("video_0001", False)
    with pytest.raises(OtherRequestError):
        store.create(job(3, idempotency_key="k", request_digest="other"), b"image", 1000, 1000)
    other = job(4, idempotency_key="k", request_digest="other", owner="you")
    assert store.create(other, b"image", 1000, 1000) == (other, True)
    found, is_new = store.create(other, b"image", 1000, 1000)  # its answer was lost: the same again
    assert (found.id, is_new) == (other.id, True)


def test_the_queue_is_bounded_for_all_and_for_each_however_many_come_at_once(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(4)]  # as of four processes
    kept: list[str] = []
    full: list[str] = []

    def send(number: int) -> None:
        owner = "me" if number % 2 else "you"
        one = job(number, owner=owner)
        try:
            stores[number % 4].create(one, b"image", most=10, most_of_owner=6)
            kept.append(owner)
        except QueueFullError:
            full.append(owner)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 10
    assert len(full) == 30
    assert max(kept.count("me"), kept.count("you")) <= 6
    store = stores[0]
    assert store.counts() == {"queued": 10}
    (done, *_), _ = store.page("me", None, 1, newest_first=True)
    assert store.fail(done.id, None, "cancelled", "enough", ttl_s=100)
    keep_one = job(100)
    assert store.create(keep_one, b"image", 10, 6)[1]


def test_a_long_queue_is_not_counted_for_every_job_until_it_is_nearly_full(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LONG_QUEUE", 10)
    store, statements = Store(database_url), list[str]()
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))

    def counts(number: int) -> bool:
        statements.clear()
        assert store.create(job(number), b"image", 20, 20)[1]
        return any("count(" in statement for statement in statements)

    assert counts(1)  # nothing is known yet
    store.count_open()
    assert not any(counts(number) for number in range(2, 19))
    store.count_open()
    assert counts(19)
    assert counts(20)
    with pytest.raises(QueueFullError):
        store.create(job(21), b"image", 20, 20)


def test_what_nobody_watches_is_taken_by_one_of_many(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(database_url)
    keep(store, *(job(number, lease_owner="dead") for number in range(20)), job(50))
    store.renew("first", 60)
    store.renew("dead", -1)

    def take(name: str) -> None:
        of = Store(database_url)
        of.renew(name, 60)
        while of.take_abandoned(name):
            pass

    threads = [threading.Thread(target=take, args=(f"taker{number}",)) for number in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(stores, "MAX_ROWS", 15)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    taken = {f"taker{number}": Store(database_url).jobs_to_watch(f"taker{number}", ()) for number in range(4)}
    assert sorted(one.id for some in taken.values() for one in some) == [f"video_{number:04d}" for number in range(20)]
    assert {one.lease_owner for one in taken["taker0"]} <= {"taker0"}
    assert store.take_abandoned("first") == 0
    assert [one.id for one in store.jobs_to_watch("first", ())] == ["video_0050"]
    assert store.jobs_to_watch("first", {"video_0050"}) == []


def test_a_running_attempt_is_left_alone_until_its_lease_expires(store: Store) -> None:
    """An ingress that takes a job over sends it to a replica, while the first replica is well."""
    keep(store, job(1))
    assert store.claim("video_0001", "first", 60, alone=True)
    assert store.claim("video_0001", "second", 60, alone=True) is None
    store.renew_attempts(["video_0001", "video_9999"], "second", -1)  # it has none here
    assert store.claim("video_0001", "second", 60, alone=True) is None
    store.renew_attempts(["video_0001"], "first", -1)
    found = store.claim("video_0001", "second", 60, alone=True)
    assert found is not None
    assert (found[0].attempt, found[0].deaths, found[0].lone_deaths) == (2, 1, 1)


def test_deaths_are_counted_and_nothing_else_is(store: Store) -> None:
    keep(store, job(1))

    def claim(replica: str, alone: bool) -> tuple[int, int, int] | None:
        found = store.claim("video_0001", replica, 60, alone)
        return found and (found[0].attempt, found[0].deaths, found[0].lone_deaths)

    assert claim("first", alone=False) == (1, 0, 0)
    store.release("video_0001", "another")  # not its attempt
    assert claim("second", alone=False) is None
    store.release("video_0001", "first")
    found = store.get("video_0001")
    assert found is not None
    assert (found.status, found.replica) == ("queued", None)
    assert claim("second", alone=False) == (2, 0, 0)
    store.release("video_0001", "second", "process")  # in a batch: another job may be to blame
    assert claim("third", alone=False) is None  # but from now on it must be alone
    assert claim("third", alone=True) == (3, 1, 0)
    store.release("video_0001", "third", "device")
    assert claim("fourth", alone=True) == (4, 2, 0)
    store.release("video_0001", "fourth", "process")
    assert claim("fifth", alone=True) == (5, 3, 1)
    assert claim("fifth", alone=True) == (6, 3, 1)  # its answer was lost: the same again


def test_pages_go_through_all_jobs_of_an_owner_in_order(store: Store) -> None:
    now = time.time()
    keep(store, *(job(number, created_at=now - number // 2) for number in range(9)), job(99, owner="you"))
    newest, more = store.page("me", None, 4, newest_first=True)
    assert more
    rest, more = store.page("me", newest[-1].id, 5, newest_first=True)
    assert not more
    ids = [one.id for one in newest + rest]
    assert len(set(ids)) == 9
    oldest, _ = store.page("me", None, 9, newest_first=False)
    assert [one.id for one in oldest] == ids[::-1]
    with pytest.raises(KeyError):
        store.page("me", "video_0099", 9, newest_first=True)


def test_images_are_kept_for_open_jobs_only(store: Store) -> None:
    keep(store, *(job(number) for number in range(1, 6)))

    def images() -> set[str]:
        return {row.id for row in store.database.all(sa.select(tables.images.c.id))}

    store.claim("video_0001", "r", 60, alone=True)
    store.complete("video_0001", 1, {}, ttl_s=100)
    store.fail("video_0002", None, "cancelled", "enough", ttl_s=100)
    store.delete("video_0003", "me")
    assert images() == {"video_0004", "video_0005"}


def test_counts_for_probes_and_metrics_are_not_older_than_asked_for(store: Store) -> None:
    keep(store, job(1))
    assert store.counts(max_age_s=60) == {"queued": 1}
    keep(store, job(2))
    assert store.counts(max_age_s=60) == {"queued": 1}
    assert store.counts() == store.counts(max_age_s=60) == {"queued": 2}


def test_deleted_and_expired_jobs_are_gone_and_known_to_have_been(store: Store) -> None:
    keep(store, job(1), job(2), job(3))
    store.claim("video_0001", "r", 60, alone=True)
    deleted = store.delete("video_0001", "me")
    assert deleted is not None
    assert store.delete("video_0001", "me") is None
    assert store.delete("video_0002", "you") is None
    assert not store.advance("video_0001", 1, 50, 60)  # its replica learns it at the next step
    store.claim("video_0002", "r", 60, alone=True)
    store.complete("video_0002", 1, {}, ttl_s=-1)
    assert [one.id for one in store.delete_expired()] == ["video_0002"]
    assert store.delete_expired() == []
    assert [store.is_gone(f"video_000{number}", "me") for number in (1, 2, 3, 4)] == [True, True, False, False]
    assert not store.is_gone("video_0001", "you")
    assert store.counts() == {"queued": 1}


def test_the_video_of_a_batch_is_kept_until_the_batch_has_ended(store: Store) -> None:
    """Its line counted as one without a video until the batch's process, which may be away, had recorded its end."""
    keep(store, job(1), job(2), job(3))
    for number in (1, 2, 3):
        store.claim(f"video_{number:04d}", "r", 60, alone=True)
        store.complete(f"video_{number:04d}", 1, {}, ttl_s=-1)
    with store.database.transaction() as connection:
        lines = {"batch": "batch_1", "number": 0, "job": "video_0001", "outcome": None, "ok": 0}
        recorded = {**lines, "number": 1, "job": "video_0002", "outcome": "{}", "ok": 1}
        refused = {**lines, "number": 2, "job": None, "outcome": "{}"}
        connection.execute(tables.lines.insert(), [lines, recorded, refused])
    assert [one.id for one in store.delete_expired()] == ["video_0003"]
    with store.database.transaction() as connection:
        connection.execute(tables.lines.delete())
    assert {one.id for one in store.delete_expired()} == {"video_0001", "video_0002"}


def test_one_query_serves_all_who_ask_before_it_begins(database_url: str) -> None:
    store, statements = Store(database_url), list[str]()
    keep(store, job(1))
    keep(store, job(2))
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))

    async def ask() -> None:
        query = SharedQuery(store, pause_s=0.2)
        assert await query.get("video_0003") is None  # the first query begins at once
        statements.clear()
        clients = [asyncio.create_task(query.get(f"video_000{number % 3 + 1}")) for number in range(60)]
        await asyncio.sleep(0)
        clients[0].cancel()  # a client that disconnects does not cancel the others
        keep(store, job(3))
        found = await asyncio.gather(*clients[1:])
        assert {one.id for one in found if one is not None} == {"video_0001", "video_0002", "video_0003"}
        assert sum("SELECT" in statement and "jobs" in statement for statement in statements) <= 3  # keep runs two

        store.delete("video_0001", "me")
        assert await query.get("video_0001") is None
        tables.jobs.drop(store.database.engine)
        store.database.patience = 0.1
        failed = await asyncio.gather(*(query.get("video_0002") for _ in range(9)), return_exceptions=True)
        assert all(isinstance(one, sa.exc.DBAPIError) for one in failed)

    asyncio.run(ask())
