"""The dispatcher over a real store: one lease owner a job, however long the store was away; lost files go."""

import asyncio
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest
from ray import ActorID
from ray.exceptions import ActorDiedError

from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.schema import VideoRequest
from pipelines.serving.served_models import look_up
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store
from pipelines.serving.videos import results
from pipelines.serving.videos.requests import complete

FILES = dict.fromkeys(results.ENDINGS, b"{}")


def job(name: str, lease_owner: str) -> Job:
    settings, now = ServeSettings(), time.time()
    request = complete(VideoRequest(prompt="it moves"), look_up("builtin:tiny", "builtin:tiny"), settings.limits)
    return Job(
        id=f"video_{name}", owner="me", model="builtin:tiny", request=request, lease_owner=lease_owner, created_at=now
    )


def claim(store: Store, name: str) -> None:
    assert store.claim(f"video_{name}", "r", 60, alone=True) is not None


def test_a_job_whose_ingress_is_gone_is_watched_by_another_and_its_replica_goes_on(tmp_path: Path) -> None:
    """It was sent to a second replica, whose attempt made the first one stop, and counted towards giving up."""
    settings = ServeSettings(output=str(tmp_path), lease_s=0.3)
    store = Store(settings.store_url)
    ends: list[tuple[str, dict[str, Any]]] = []

    async def both() -> None:
        hold, begun = asyncio.Event(), asyncio.Event()

        def replica(of: str) -> Any:
            async def animate(job_id: str, shape: str) -> dict[str, Any]:
                found = store.claim(job_id, of, 60, alone=True)
                begun.set()
                if found is None:
                    return {}
                await hold.wait()
                store.complete(job_id, found[0].attempt, {"by": of}, settings.ttl_s)
                return {"batch": 1}

            return animate

        first = Dispatcher(settings, store, {"builtin:tiny": replica("first")})
        second = Dispatcher(
            settings, store, {"builtin:tiny": replica("second")}, lambda job, facts: ends.append((job.status, facts))
        )
        store.renew(first.name, 0.3)  # and never again: its process died
        kept = job("taken", first.name)
        store.create(kept, b"image", 10, 10)
        first.submit(kept)
        await begun.wait()
        second.start()
        while kept.id not in second.tasks:
            await asyncio.sleep(0.02)
        hold.set()
        await second.ended(kept.id)
        first.stop()
        second.stop()

    asyncio.run(asyncio.wait_for(both(), 60))
    found = store.get("video_taken")
    assert found is not None
    assert (found.attempt, found.deaths, found.result, ends) == (1, 0, {"by": "first"}, [("completed", {})])


def test_a_job_that_the_database_kept_without_an_answer_is_watched_all_the_same(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path), lease_s=0.3)
    store = Store(settings.store_url)

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        found = store.claim(job_id, "r", 60, alone=True)
        assert found is not None
        store.complete(job_id, found[0].attempt, {}, settings.ttl_s)
        return {}

    async def see() -> None:
        of = Dispatcher(settings, store, {"builtin:tiny": animate})
        of.start()
        store.create(job("kept", of.name), b"image", 10, 10)  # and nobody submits it
        await of.ended("video_kept")
        of.stop()

    asyncio.run(asyncio.wait_for(see(), 60))


def test_a_dead_replica_is_counted_once_and_a_machine_that_was_taken_away_is_not(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path))
    store = Store(settings.store_url)
    actors = [f"{number:0{2 * ActorID.size()}x}" for number in range(3)]
    fates = list(zip(actors, [False, True, None], strict=True))

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        actor, preempted = fates.pop(0)
        found = store.claim(job_id, actor, 600, alone=True)
        assert found is not None, "nobody else may have it"
        if preempted is None:
            store.complete(job_id, found[0].attempt, {"deaths": found[0].lone_deaths}, settings.ttl_s)
            return {}
        error = ActorDiedError()
        error.actor_id, error._preempted = actor, preempted
        raise error

    async def see() -> None:
        of = Dispatcher(settings, store, {"builtin:tiny": animate})
        store.create(job("dies", of.name), b"image", 10, 10)
        of.submit(job("dies", of.name))
        await of.ended("video_dies")

    asyncio.run(asyncio.wait_for(see(), 60))
    found = store.get("video_dies")
    assert found is not None
    assert (found.attempt, found.result) == (3, {"deaths": 1})


def test_jobs_are_taken_over_only_when_their_owners_had_time_to_renew(tmp_path: Path) -> None:
    """After an outage of the database all leases have expired, and all ingresses are well."""
    settings = ServeSettings(output=str(tmp_path), lease_s=60)
    store = Store(settings.store_url)
    store.renew("other", -1)
    store.create(job("of_other", "other"), b"image", 10, 10)

    async def see() -> float:
        of = Dispatcher(settings, store, {})
        of.renewed -= 1000  # the database was away
        of.start()
        while time.monotonic() > of.renewed + 60:
            await asyncio.sleep(0.02)
        of.stop()
        return of.may_take_over_from - of.renewed

    assert asyncio.run(asyncio.wait_for(see(), 60)) == pytest.approx(60, abs=1)
    assert [one.id for one in store.jobs_to_watch("other", ())] == ["video_of_other"]


def test_a_call_that_fails_is_made_again_and_a_model_that_is_gone_fails_the_job(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path))
    store = Store(settings.store_url)
    ends: list[tuple[str, dict[str, Any]]] = []
    calls: list[str] = []

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        calls.append(job_id)
        if len(calls) < 3:
            raise ConnectionError("the replica died")
        found = store.claim(job_id, "r", settings.lease_s, alone=True)
        assert found is not None
        store.complete(job_id, found[0].attempt, {}, settings.ttl_s)
        return {"batch": 1}

    async def see() -> None:
        of = Dispatcher(settings, store, {"builtin:tiny": animate}, lambda job, facts: ends.append((job.status, facts)))
        good = job("good", of.name)
        bad = dataclasses.replace(job("bad", of.name), model="gone")
        for one in (good, bad):
            store.create(one, b"image", 10, 10)
            of.submit(one)
        await asyncio.wait_for(asyncio.gather(of.ended(good.id), of.ended(bad.id)), 20)

    asyncio.run(see())
    assert calls == ["video_good"] * 3
    assert sorted(ends, key=str) == [("completed", {"batch": 1}), ("failed", {})]


def test_files_of_overtaken_attempts_and_deleted_jobs_are_swept_and_no_others(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path), lease_s=1)
    store = Store(settings.store_url)
    videos = str(tmp_path / "videos")
    store.renew("me", 60)  # the ingress that watches them
    for name in ("done", "open", "deleted"):
        store.create(job(name, "me"), b"image", 10, 10)
    for _ in range(2):
        claim(store, "done")
    store.complete("video_done", 2, {}, settings.ttl_s)
    claim(store, "open")
    store.delete("video_deleted", "me")
    for name, attempt in [("done", 1), ("done", 2), ("open", 1), ("deleted", 1), ("unknown", 1)]:
        results.write(videos, f"video_{name}", attempt, FILES)
    half = Path(videos, ".video_open-1.mp4.0a1b2c3d")  # of a replica that was killed
    half.write_bytes(b"half")
    os.utime(half, (0, 0))

    async def tend() -> None:
        of = Dispatcher(settings, store, {})
        of.start()
        while len(results.attempts(videos)) > 3 or half.exists():
            await asyncio.sleep(0.05)
        of.stop()

    asyncio.run(asyncio.wait_for(tend(), 20))
    assert results.attempts(videos) == {("video_done", 2), ("video_open", 1), ("video_unknown", 1)}


def test_a_new_database_beside_old_videos_deletes_none_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, videos = ServeSettings(output=str(tmp_path)), str(tmp_path / "videos")
    for number in range(3):
        results.write(videos, f"video_{number}", 1, FILES)
    before = {path: path.read_bytes() for path in Path(videos).iterdir()}
    Dispatcher(settings, Store(settings.store_url), {})._sweep()
    assert {path: path.read_bytes() for path in Path(videos).iterdir()} == before
    assert "kept 3 videos" in caplog.text


def test_the_time_to_come_back_follows_the_measured_rate(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path), limits={"max_queue": 10})
    of = Dispatcher(settings, Store(settings.store_url), {})
    assert of.retry_after(10) == 10  # nothing was measured
    now = time.monotonic()
    of.ends.extend([now - 8, now - 6, now - 4, now - 2])  # one in two seconds
    assert of.retry_after(10) in (2, 3)  # room for one
    assert of.retry_after(19) in (20, 21)  # room after ten
    assert of.retry_after(10_000) == 600


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model": "old"}, "model old is no longer served"), ({"lora": "rain"}, "lora rain is no longer served")],
)
def test_a_job_of_a_model_or_adapter_that_is_no_longer_served_fails(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    settings = ServeSettings(output=str(tmp_path), loras={"ink": "ink.safetensors"})
    store, sent = Store(settings.store_url), list[str]()

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        sent.append(job_id)
        return {}

    async def fails() -> None:
        dispatcher = Dispatcher(settings, store, {"builtin:tiny": animate})
        kept = job("gone", dispatcher.name)
        lora = [{"name": name, "weight": 1.0, "fingerprint": name} for name in ("ink", change.get("lora", "ink"))]
        kept = dataclasses.replace(kept, model=change.get("model", kept.model), request={**kept.request, "lora": lora})
        store.create(kept, b"image", 10, 10)
        dispatcher.submit(kept)
        await dispatcher.ended(kept.id)
        dispatcher.stop()

    asyncio.run(asyncio.wait_for(fails(), 60))
    found = store.get("video_gone")
    assert found is not None
    assert (found.status, (found.error or {})["message"], sent) == ("failed", message, [])
