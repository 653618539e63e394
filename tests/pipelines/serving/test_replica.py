"""A replica without Ray: batches, cancellation, attempts, and files that count."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy.exc import OperationalError

from cinemo import CinemoPipeline
from cinemo.video import probe, sample_clip, write_video
from pipelines.animate.request import shape_of
from pipelines.core import storage
from pipelines.serving import replica, schema, served_models
from pipelines.serving.replica import Animator
from pipelines.serving.settings import Limits, Replicas, ServeSettings
from pipelines.serving.store import Job
from pipelines.serving.videos import results
from tests.pipelines.serving.in_process import busy, png, watch


@pytest.fixture(scope="module")
def animator(small: str, loras: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Animator:
    output = str(tmp_path_factory.mktemp("serve"))
    settings = ServeSettings(model=small, loras=loras, output=output, replicas=Replicas(max_batch=4))
    return Animator(settings.model_dump(), "small", small)


def keep(animator: Animator, name: str, **asked: Any) -> Job:
    """A job in the animator's store."""
    served = served_models.look_up("small", animator.settings.model, animator.settings.loras)
    wanted = schema.VideoRequest(**{"prompt": "", "size": "96x64", **asked})
    request = served_models.complete(wanted, served, Limits(max_steps=900))
    now = time.time()
    job = Job(
        id=f"video_{name}", owner="me", model="small", request=request, lease_owner="me", created_at=now,
        request_digest=name,
    )  # fmt: skip
    assert animator.store.create(job, png(), 100, 100)[1]
    return job


def animate(animator: Animator, *jobs: Job) -> list[dict[str, Any]]:
    async def all_of_them() -> list[dict[str, Any]]:
        return await asyncio.gather(*(animator.animate(job.id, shape_of(job.request)) for job in jobs))

    return asyncio.run(all_of_them())


def test_a_batch_of_four_gives_the_videos_of_four_single_calls(animator: Animator, small: str, tmp_path: Path) -> None:
    asked = [
        {"prompt": "the camera pans left", "seed": 1, "motion_bucket": 3, "guidance_scale": 2.0},
        {"prompt": "the camera zooms in", "seed": 2, "motion_bucket": 17, "guidance_scale": 5.0},
        {"prompt": "the camera zooms in", "seed": 3, "motion_bucket": 10, "negative_prompt": "rain"},
        {"prompt": "", "seed": 4, "motion_bucket": 0, "guidance_scale": 1.5},
    ]
    jobs = [keep(animator, f"batch{number}", **one) for number, one in enumerate(asked)]
    facts = animate(animator, *jobs)
    assert [one["batch"] for one in facts] == [4, 4, 4, 4]
    pipe = CinemoPipeline.from_pretrained(small)
    pipe.set_progress_bar_config(disable=True)
    for job, one in zip(jobs, facts, strict=True):
        path = storage.join(animator.videos, results.name(job.id, 1, "video"))
        height, width = job.request["height"], job.request["width"]
        made = sample_clip(path, 0, 1, 4, (height, width)).astype(float)
        settings = {
            name: job.request[name]
            for name in (
                "negative_prompt",
                "motion_bucket",
                "seed",
                "guidance_scale",
                "num_inference_steps",
                "num_frames",
            )
        }
        # The frames of a single call go through H.264 too: it loses much of what an untrained model makes.
        write_video(
            tmp_path / "alone.mp4", pipe(png(), job.request["prompt"], **settings).frames[0], job.request["fps"]
        )
        alone = sample_clip(tmp_path / "alone.mp4", 0, 1, 4, (height, width)).astype(float)
        assert np.abs(made - alone).mean() < 3  # another seed makes 40
        sidecar = storage.read_json(storage.join(animator.videos, results.name(job.id, 1, "sidecar")))
        assert sidecar["request"] == job.request
        assert sidecar["model_fingerprint"] == animator.fingerprint
        assert sidecar["model_lineage"] == animator.pipe.card.lineage
        assert sidecar["motion_score"] == one["motion_score"]
        ended = animator.store.get(job.id)
        assert ended is not None
        assert (ended.status, ended.progress) == ("completed", 100)
        assert probe(path).num_frames == 4
        assert Path(storage.join(animator.videos, results.name(job.id, 1, "spritesheet"))).exists()


def test_requests_with_other_adapters_get_the_videos_of_a_pipeline_that_has_theirs_alone(
    animator: Animator, small: str, loras: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, np.ndarray]] = []

    def noted(pipe: Any, asked: Any, *arguments: Any) -> list[np.ndarray]:
        found = make(pipe, asked, *arguments)
        made.extend(zip(asked, found, strict=True))
        return found

    make = replica.frames.make
    monkeypatch.setattr(replica.frames, "make", noted)
    named = ["ink", None, "ink, rain:0.5", "ink", "rain", "ink:0"]
    jobs = [keep(animator, f"lora{number}", seed=5, lora=text or []) for number, text in enumerate(named)]
    facts = animate(animator, *jobs)
    assert [one["batch"] for one in facts] == [2, 2, 1, 2, 1, 2]
    pipe = CinemoPipeline.from_pretrained(small)
    pipe.set_progress_bar_config(disable=True)
    for request, frames in made:
        pipe.load_adapters([(loras[one["name"]], one["weight"]) for one in request.get("lora", [])])
        settings = {name: request[name] for name in ("seed", "guidance_scale", "num_inference_steps", "num_frames")}
        expected = pipe(png(), request["prompt"], **settings).frames[0]
        assert np.abs(frames.astype(int) - expected).max() <= 1
    sidecar = storage.read_json(storage.join(animator.videos, results.name(jobs[2].id, 1, "sidecar")))
    assert [(one["path"], one["weight"], one["lineage"]) for one in sidecar["loras"]] == [
        ("ink", 1.0, {"steps": 9}),
        ("rain", 0.5, {}),
    ]
    plain = storage.read_json(storage.join(animator.videos, results.name(jobs[1].id, 1, "sidecar")))
    assert "loras" not in plain


def test_a_job_whose_adapter_a_replica_of_another_configuration_lacks_goes_back(
    animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = keep(animator, "gone", lora="ink")
    monkeypatch.delitem(animator.adapters.places, "ink")
    animate(animator, job)
    waits = animator.store.get(job.id)
    assert waits is not None
    assert (waits.status, waits.deaths) == ("queued", 0)
    monkeypatch.undo()
    animate(animator, job)
    ended = animator.store.get(job.id)
    assert ended is not None
    assert ended.status == "completed"


def test_of_a_batch_one_is_cancelled_and_the_others_are_made(animator: Animator) -> None:
    stays, goes = (keep(animator, f"cancel{number}", num_inference_steps=6) for number in range(2))
    seen: list[int] = []
    advance = animator.store.advance

    def watched(job_id: str, attempt: int, progress: int, lease_s: float) -> bool:
        if job_id == goes.id and progress:
            seen.append(progress)
            animator.store.delete(goes.id, "me")
        return advance(job_id, attempt, progress, lease_s)

    animator.store.advance = watched  # type: ignore[method-assign]
    try:
        facts = animate(animator, stays, goes)
    finally:
        animator.store.advance = advance  # type: ignore[method-assign]
    assert facts[0]
    assert facts[1] == {}
    assert len(seen) == 1  # it is not asked about again
    assert not list(Path(animator.videos).glob(f"{goes.id}*"))


def test_a_lone_cancelled_job_stops_within_a_step(animator: Animator) -> None:
    job = keep(animator, "alone", num_inference_steps=900)

    async def begin_and_delete() -> dict[str, Any]:
        made = asyncio.create_task(animator.animate(job.id, shape_of(job.request)))
        while (now := animator.store.get(job.id)) is None or now.progress < 2:
            await asyncio.sleep(0.02)
        animator.store.delete(job.id, "me")
        return await made

    with watch(animator) as steps:
        assert asyncio.run(begin_and_delete()) == {}
    answers = steps.answers(job.id)
    assert answers == [True] * (len(answers) - 1) + [False]  # the first step that it hears of is its last
    assert len(answers) < 900
    assert not list(Path(animator.videos).glob(f"{job.id}*"))


def test_an_attempt_that_was_overtaken_leaves_nothing(animator: Animator) -> None:
    job = keep(animator, "overtaken")
    complete = animator.store.complete

    def late(job_id: str, attempt: int, result: Any, ttl_s: float) -> bool:
        animator.store.renew_attempts([job_id], animator.replica, -1)
        assert animator.store.claim(job_id, "another", 60, alone=True) is not None
        return complete(job_id, attempt, result, ttl_s)

    animator.store.complete = late  # type: ignore[method-assign]
    try:
        assert animate(animator, job) == [{}]
    finally:
        animator.store.complete = complete  # type: ignore[method-assign]
    assert not list(Path(animator.videos).glob(f"{job.id}*"))
    animator.store.release(job.id, "another")
    assert animate(animator, job)[0]  # the third attempt
    assert results.attempts(animator.videos) >= {(job.id, 3)}


def test_what_fails_in_a_batch_fails_alone_and_what_always_dies_is_given_up(animator: Animator) -> None:
    good, bad, doomed = keep(animator, "good"), keep(animator, "bad"), keep(animator, "doomed")
    with animator.store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cinemo_images_1 SET image = 'no image' WHERE id = 'video_bad'")
        connection.exec_driver_sql("UPDATE cinemo_jobs_2 SET deaths = 10 WHERE id = 'video_doomed'")
    facts = animate(animator, good, bad, doomed)
    assert facts[0]
    assert facts[1:] == [{}, {}]
    errors = [animator.store.get(job.id).error for job in (bad, doomed)]  # type: ignore[union-attr]
    assert "the service's log says why, under video_bad" in errors[0]["message"]  # type: ignore[index]
    assert "given up: its attempts ended 10 times" in errors[1]["message"]  # type: ignore[index]
    assert dataclasses.asdict(animator.store.get(good.id))["status"] == "completed"  # type: ignore[call-overload]


def test_a_job_that_may_have_killed_a_process_runs_alone_and_two_deaths_of_its_own_fail_it(animator: Animator) -> None:
    """It took its batch along, ten times."""
    killer, *others = (keep(animator, f"kills{number}") for number in range(3))
    for job in (killer, *others):
        assert animator.store.claim(job.id, "dead", -1, alone=False)  # their process died: the lease expired
    facts = animate(animator, killer, *others)
    assert [one["batch"] for one in facts] == [1, 1, 1]

    killer = keep(animator, "kills_alone")
    for number in range(2):
        assert animator.store.claim(killer.id, f"dead{number}", -1, alone=True)
    assert animate(animator, killer) == [{}]
    failed = animator.store.get(killer.id)
    assert failed is not None
    message = "given up: its attempts ended 2 times because a process or a device died"
    assert failed.error == {"code": "server_error", "message": message}
    assert failed.attempt == 3


def test_a_job_that_is_sent_twice_is_made_once_for_both(animator: Animator) -> None:
    """Of two attempts in one batch, each made the other stop."""
    one, other = keep(animator, "twice"), keep(animator, "once")
    first, second, third = animate(animator, one, one, other)
    assert first == second
    assert (first["batch"], third["batch"]) == (2, 2)
    made = animator.store.get(one.id)
    assert made is not None
    assert (made.status, made.attempt) == ("completed", 1)


def test_a_device_that_computes_nothing_fails_no_job_and_its_replica_is_replaced(
    animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An illegal access stays for as long as the process lives; each job failed within milliseconds."""

    def fault(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    jobs = [keep(animator, f"fault{number}") for number in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(CinemoPipeline, "__call__", fault)
        patch.setattr(torch, "ones", fault)
        for _ in range(2):
            with pytest.raises(replica.DeviceLostError):
                animate(animator, *jobs)
        with pytest.raises(replica.DeviceLostError):
            asyncio.run(animator.check_health())
    kept = animator.store.get_all([job.id for job in jobs])
    assert [(job.status, job.attempt, job.lone_deaths) for job in kept] == [("queued", 1, 0)] * 3
    animator.device_lost = False  # as in another replica
    assert [one["batch"] for one in animate(animator, *jobs)] == [1, 1, 1]


def test_the_health_of_an_idle_replica_is_a_tiny_computation_that_waits_for_no_animation(animator: Animator) -> None:
    """It was an animation: of a full-size model on CPUs, minutes, for which Serve does not wait."""
    with busy(animator):
        animator.last_sign_of_life = before = animator.last_sign_of_life - 1000
        asyncio.run(asyncio.wait_for(animator.check_health(), 30))
        assert animator.last_sign_of_life > before


def test_a_step_may_take_as_long_as_this_model_needs(animator: Animator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(animator, "running", {"video_slow"})
    monkeypatch.setattr(animator, "last_sign_of_life", time.monotonic() - 1000)
    with pytest.raises(RuntimeError, match="no denoising step in 1000 s"):
        asyncio.run(animator.check_health())
    monkeypatch.setattr(animator, "longest_step_s", 20 * 600.0)  # its first animation took ten minutes
    asyncio.run(animator.check_health())


@pytest.mark.parametrize("away_at", [["claim"], ["advance", "fail"]])
def test_a_job_whose_database_stays_away_is_given_back_and_the_replica_works_on(
    animator: Animator, monkeypatch: pytest.MonkeyPatch, away_at: list[str]
) -> None:
    """The caller hears that it is not finished, and gives it to a replica again; it would wait for ever otherwise."""

    def away(*arguments: Any) -> Any:
        raise OperationalError("SELECT", {}, Exception("no route to host"))

    job = keep(animator, f"away_at_{away_at[0]}")
    with monkeypatch.context() as patch:
        for name in away_at:
            patch.setattr(animator.store, name, away)
        given = asyncio.wait_for(animator.animate(job.id, shape_of(job.request)), 60)
        with pytest.raises(OperationalError):
            asyncio.run(given)
    kept = animator.store.get(job.id)
    assert kept is not None
    assert (kept.status, kept.replica, kept.deaths) == ("queued", None, 0)
    (facts,) = animate(animator, job)
    assert facts["batch"] == 1


@contextlib.contextmanager
def storage_away(animator: Animator) -> Iterator[None]:
    """A file stands where the folder of videos should be, so that every write is an OSError."""
    folder = Path(animator.videos)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.rename(folder.with_name("aside"))
    folder.write_bytes(b"")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


def test_frames_wait_for_a_storage_that_is_away(animator: Animator, monkeypatch: pytest.MonkeyPatch) -> None:
    job, over, waits = keep(animator, "storage"), contextlib.ExitStack(), []
    over.enter_context(storage_away(animator))

    def come_back(state: Any) -> None:
        waits.extend(animator.running)
        over.close()

    monkeypatch.setattr(animator, "_waits_for_storage", come_back)
    with over:
        assert animate(animator, job)[0]
    assert waits == [job.id]
    assert results.attempts(animator.videos) >= {(job.id, 1)}  # one attempt: no frame was made twice


def test_a_job_whose_storage_stays_away_is_given_back_and_nothing_is_animated_until_it_is_there(
    animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job was animated, given up after five minutes, and animated again, ten times; then it failed for good."""
    job, later = keep(animator, "no_storage"), keep(animator, "later")
    with monkeypatch.context() as patch:
        patch.setattr(replica, "PATIENCE_S", 0.5)
        with storage_away(animator):
            with pytest.raises(replica.StorageAwayError):
                animate(animator, job)
            for _ in range(2):
                with pytest.raises(replica.StorageAwayError):
                    animate(animator, job, later)
    kept = animator.store.get_all([job.id, later.id])
    assert [(one.status, one.attempt, one.deaths) for one in kept] == [("queued", 1, 0), ("queued", 0, 0)]
    assert [one["batch"] for one in animate(animator, job, later)] == [2, 2]
