"""A replica whose device, database or storage fails gives its jobs back. Also tests its health check."""

import asyncio
import contextlib
import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy.exc import OperationalError

from cinemo import CinemoPipeline
from pipelines.animate.request import shape_of
from pipelines.core import storage
from pipelines.serving import replica
from pipelines.serving.replica import Animator
from pipelines.serving.videos import results
from tests.pipelines.conftest import export_another
from tests.pipelines.serving.in_process import busy
from tests.pipelines.serving.replicas import animate, keep, make_animator


@pytest.fixture(scope="module")
def animator(small: str, loras: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Animator:
    return make_animator(small, loras, tmp_path_factory.mktemp("serve"))


def test_a_device_that_computes_nothing_fails_no_job_and_its_replica_is_replaced(
    animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access a process computes nothing any more, and each job that it got failed at once."""

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
    """The check was an animation, which takes a full-size model on CPUs minutes: longer than Serve waits."""
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
    """The caller is told that the job is not finished, and sends it again; otherwise it would wait for ever."""

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
    """Put a file where the folder of videos should be, so that every write raises OSError."""
    folder = Path(animator.videos)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.rename(folder.with_name("aside"))
    folder.write_bytes(b"")
    try:
        yield
    finally:
        folder.unlink()
        aside.rename(folder)


@contextlib.contextmanager
def temporary_folder_away(animator: Animator) -> Iterator[None]:
    """Let temporary files have a folder that does not exist."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", f"{animator.videos}/gone")
        yield


@contextlib.contextmanager
def disk_full(animator: Animator) -> Iterator[None]:
    """Let files be created, but not hold a byte."""
    put = storage.put

    def refuse(uri: str, data: bytes) -> None:
        if data:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(uri, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "put", refuse)
        yield


@pytest.mark.parametrize("away", [storage_away, temporary_folder_away])
def test_frames_wait_for_a_storage_or_a_temporary_folder_that_is_away(
    animator: Animator, monkeypatch: pytest.MonkeyPatch, away: Callable[..., Any]
) -> None:
    job, over, waits = keep(animator, away.__name__), contextlib.ExitStack(), []
    over.enter_context(away(animator))

    def come_back(state: Any) -> None:
        waits.extend(animator.running)
        over.close()

    monkeypatch.setattr(animator, "_waits_for_storage", come_back)
    with over:
        assert animate(animator, job)[0]
    assert waits == [job.id]
    assert results.attempts(animator.videos) >= {(job.id, 1)}  # one attempt: no frame was made twice


@pytest.mark.parametrize("away", [storage_away, temporary_folder_away, disk_full])
def test_a_job_whose_storage_stays_away_is_given_back_and_nothing_is_animated_until_it_is_there(
    animator: Animator, monkeypatch: pytest.MonkeyPatch, away: Callable[..., Any]
) -> None:
    """Every job was animated, given up after five minutes, and animated again, for ever or until it failed."""
    job, later = keep(animator, f"no_{away.__name__}"), keep(animator, f"later_{away.__name__}")
    animator.storage_works = True  # as after a video before
    with monkeypatch.context() as patch:
        patch.setattr(replica, "PATIENCE_S", 0.5)
        with away(animator):
            with pytest.raises(replica.StorageAwayError):
                animate(animator, job)
            for _ in range(2):
                with pytest.raises(replica.StorageAwayError):
                    animate(animator, job, later)
    kept = animator.store.get_all([job.id, later.id])
    assert [(one.status, one.attempt, one.deaths) for one in kept] == [("queued", 1, 0), ("queued", 0, 0)]
    assert [one["batch"] for one in animate(animator, job, later)] == [2, 2]


def test_a_model_that_is_replaced_while_it_is_loaded_does_not_serve(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(small, tmp_path / "model")
    load = CinemoPipeline.from_pretrained

    def overtaken(directory: Path, *arguments: Any) -> Any:
        made = load(directory, *arguments)
        export_another(directory / "vae_temporal_decoder")
        return made

    monkeypatch.setattr(CinemoPipeline, "from_pretrained", overtaken)
    with pytest.raises(ValueError, match="was replaced while it was loaded"):
        make_animator(str(model), {}, tmp_path / "out")


def test_a_probe_of_the_storage_is_small_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, put = list[int](), storage.put
    monkeypatch.setattr(storage, "put", lambda uri, data: (sizes.append(len(data)), put(uri, data)))
    for size in (0, 2 << 20, 1 << 40):
        results.check_writable(str(tmp_path), size)
    assert sizes == [results.LEAST_PROBE, 2 << 20, results.MOST_PROBE]
    assert not list(tmp_path.iterdir())
