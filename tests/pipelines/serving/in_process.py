"""The whole service in the test's own process, without Ray: a replica that can be watched and held, a client of it."""

import asyncio
import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import skimage.data
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.serving import page, served_models
from pipelines.serving.api import create_app
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.metrics import Metrics
from pipelines.serving.replica import Animator
from pipelines.serving.service import Service
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Job, Store

FAST = {"num_inference_steps": "2", "seed": "7"}


def png(size: tuple[int, int] = (96, 64)) -> bytes:
    """A small photo as the bytes of a PNG: (width, height)."""
    picture = Image.fromarray(skimage.data.astronaut()).resize(size)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def busy(animator: Animator) -> Iterator[None]:
    """A replica that begins no video for the time of a block."""
    over = threading.Event()
    animator.thread.submit(over.wait)
    try:
        yield
    finally:
        over.set()


class Steps:
    """The steps of a replica, as it tells its store of them."""

    def __init__(self, animator: Animator) -> None:
        self.told: list[tuple[str, bool]] = []  # (job, whether it is still wanted)
        self.held, self.permits = False, threading.Semaphore(0)
        self.advance = animator.store.advance

    def watched(self, job_id: str, attempt: int, progress: int, lease_s: float, **more: Any) -> bool:
        wanted = self.advance(job_id, attempt, progress, lease_s, **more)
        self.told.append((job_id, wanted))
        if self.held:
            self.permits.acquire()
        return wanted

    def hold(self) -> None:
        """Let the replica stand still once it has told its next step."""
        self.held = True

    def go_on(self, one: bool = False) -> None:
        """Let it do the rest, or one step."""
        self.held = one
        self.permits.release()

    def answers(self, job_id: str) -> list[bool]:
        """Answers that the replica got for a job, step by step: whether the job is still wanted."""
        return [wanted for name, wanted in self.told if name == job_id]


@contextlib.contextmanager
def watch(animator: Animator) -> Iterator[Steps]:
    """The steps of a replica for the time of a block."""
    steps = Steps(animator)
    animator.store.advance = steps.watched  # type: ignore[method-assign]
    try:
        yield steps
    finally:
        steps.go_on()
        animator.store.advance = steps.advance  # type: ignore[method-assign]


class Stub:
    """A replica that ends jobs, one at a time, without making videos."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.store, self.one = settings, Store(settings.store_url), asyncio.Lock()
        self.begun: list[str] = []  # ids of jobs

    async def animate(self, job_id: str, shape: str) -> dict[str, Any]:
        """End a job: as failed if its prompt is "fail", else as completed."""
        async with self.one:
            if (found := await asyncio.to_thread(self.store.claim, job_id, "stub", 60, alone=True)) is not None:
                self.begun.append(job_id)
                await asyncio.to_thread(self.end, found[0])
        return {}

    def end(self, job: Job) -> None:
        if job.request["prompt"] == "fail":
            self.store.fail(job.id, job.attempt, "server_error", "it failed", self.settings.ttl_s)
        else:
            self.store.complete(job.id, job.attempt, {"motion_bucket": 3}, self.settings.ttl_s)


def application(settings: ServeSettings, animator: Animator | Stub, with_page: bool = False) -> FastAPI:
    """The whole application over one replica in this process, without Ray."""
    metrics, store = Metrics(), Store(settings.store_url)
    ((name, model),) = settings.served.items()
    dispatcher = Dispatcher(settings, store, {name: animator.animate}, metrics.ended)
    service = Service(settings, store, dispatcher, {name: served_models.look_up(name, model, settings.loras)})

    async def ready() -> list[str]:
        return []

    app = create_app(service, metrics, ready)
    if with_page:
        page.mount(app, service)
    return app


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an application that answers on a port of this machine for the time of a block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        try:
            yield "http://127.0.0.1:{}".format(*listener.getsockname()[1:])
        finally:
            server.should_exit = True
            thread.join(timeout=20)


def serve(settings: ServeSettings, animator: Animator | Stub) -> TestClient:
    """A client of the whole application, with one replica in this process."""
    return TestClient(application(settings, animator), raise_server_exceptions=False)


def send(client: TestClient, image: bytes | None = None, **fields: Any) -> Any:
    """The answer to a request for a video of `image`."""
    files = {"input_reference": ("photo.png", png() if image is None else image, "image/png")}
    headers = fields.pop("headers", {})
    return client.post("/v1/videos", data={"prompt": "a cat", **FAST, **fields}, files=files, headers=headers)


def wait(client: TestClient, video_id: str) -> dict[str, Any]:
    """The video, when it has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        video = client.get(f"/v1/videos/{video_id}").json()
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.05)
    pytest.fail(f"{video_id} did not end")
