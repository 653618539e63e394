"""A replica without Ray: batches, cancellation, attempts, and files that count."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinemo import CinemoPipeline
from cinemo.video import probe, sample_clip, write_video
from pipelines.animate.request import shape_of
from pipelines.core import storage
from pipelines.serving import replica
from pipelines.serving.replica import Animator
from pipelines.serving.videos import results
from tests.pipelines.serving.in_process import png, watch
from tests.pipelines.serving.replicas import animate, keep, make_animator


@pytest.fixture(scope="module")
def animator(small: str, loras: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Animator:
    return make_animator(small, loras, tmp_path_factory.mktemp("serve"))


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


@pytest.mark.parametrize("what", ["model", "adapter"])
def test_a_job_whose_model_or_adapter_a_replica_of_another_configuration_lacks_goes_back(
    animator: Animator, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    job = keep(animator, f"gone-{what}", lora="ink")
    if what == "model":
        monkeypatch.setattr(animator, "name", "other")
    else:
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
