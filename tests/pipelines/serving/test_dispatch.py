"""The dispatcher over a real store: one lease owner a job, however long the store was away; lost files go."""

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving import results
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.schema import VideoRequest
from pipelines.serving.served_models import complete, look_up
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store

FILES = dict.fromkeys(results.ENDINGS, b"{}")


def job(name: str, lease_owner: str, lease_until: float) -> Job:
    settings, now = ServeSettings(), time.time()
    request = complete(VideoRequest(prompt="it moves"), look_up("builtin:tiny", "builtin:tiny"), settings.limits)
    return Job(
        id=f"video_{name}", owner="me", model="builtin:tiny", request=request, lease_owner=lease_owner,
        lease_until=lease_until, created_at=now,
    )  # fmt: skip


def test_a_job_that_another_process_took_is_left_to_it(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path), lease_s=5)
    store = Store(settings.store_url)
    calls: list[str] = []

    async def both() -> None:
        hold = asyncio.Event()

        def replica(of: str) -> Any:
            async def animate(job_id: str, shape: str) -> dict[str, Any]:
                calls.append(of)
                found = store.claim(job_id, settings.lease_s)
                assert found is not None
                await hold.wait()
                store.complete(job_id, found[0].attempt, {"by": of}, settings.ttl_s)  # unless it was overtaken
                return {}

            return animate

        first, second = (Dispatcher(settings, store, {"builtin:tiny": replica(of)}) for of in ("first", "second"))
        kept = job("taken", first.name, time.time() + 0.1)
        store.create(kept, b"image", 10, 10)
        first.submit(kept)
        await asyncio.sleep(0.1)
        store.extend([kept.id], -1)  # the store was away for longer than a lease
        (taken,) = store.take_abandoned(second.name, settings.lease_s)
        second.submit(taken)
        await asyncio.sleep(0.1)
        hold.set()
        await asyncio.wait_for(asyncio.gather(first.ended(kept.id), second.ended(kept.id)), 10)
        first.stop()
        second.stop()

    asyncio.run(both())
    found = store.get("video_taken")
    assert found is not None
    assert (calls, found.attempt, found.result) == (["first", "second"], 2, {"by": "second"})


def test_a_call_that_fails_is_made_again_and_a_model_that_is_gone_fails_the_job(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path))
    store = Store(settings.store_url)
    ends: list[tuple[str, dict[str, Any]]] = []
    calls: list[str] = []

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        calls.append(job_id)
        if len(calls) < 3:
            raise ConnectionError("the replica died")
        found = store.claim(job_id, settings.lease_s)
        assert found is not None
        store.complete(job_id, found[0].attempt, {}, settings.ttl_s)
        return {"batch": 1}

    async def see() -> None:
        of = Dispatcher(settings, store, {"builtin:tiny": animate}, lambda job, facts: ends.append((job.status, facts)))
        good = job("good", of.name, time.time() + 60)
        bad = dataclasses.replace(job("bad", of.name, time.time() + 60), model="gone")
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
    for name in ("done", "open", "deleted"):
        store.create(job(name, "me", time.time() + 60), b"image", 10, 10)
    for _ in range(2):
        store.claim("video_done", 60)
    store.complete("video_done", 2, {}, settings.ttl_s)
    store.claim("video_open", 60)
    store.delete("video_deleted", "me")
    for name, attempt in [("done", 1), ("done", 2), ("open", 1), ("deleted", 1), ("unknown", 1)]:
        results.write(videos, f"video_{name}", attempt, FILES)

    async def tend() -> None:
        of = Dispatcher(settings, store, {})
        of.start()
        while len(results.attempts(videos)) > 3:
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
