"""What the tests on real Ray Serve share: the service deployed, a client as clients should be, its processes."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
from ray import serve

import serve_app
from pipelines.serving.settings import ServeSettings
from tests.pipelines.serving.conftest import free_port
from tests.pipelines.serving.in_process import png


@contextlib.contextmanager
def deployed(settings: ServeSettings) -> Iterator[httpx.Client]:
    """A client of the service, on a free port of a cluster that is there already."""
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(serve_app.app(settings), name="cinemo")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        serve.shutdown()


def send(client: httpx.Client, **fields: Any) -> str:
    """The id of a new video; sent again while the service is away or full, with a key, as clients should."""
    key = {"Idempotency-Key": os.urandom(8).hex()}
    data = {"prompt": "the camera pans left", "num_inference_steps": "4", **fields}
    deadline, last = time.monotonic() + 240, None
    while True:
        try:
            last = client.post("/v1/videos", data=data, files={"input_reference": png()}, headers=key)
            if last.status_code == 200:
                return last.json()["id"]
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, last and last.text
        time.sleep(0.2)


def wait(client: httpx.Client, *ids: str, seconds: float = 240) -> list[dict[str, Any]]:
    """The videos, when all of them have ended."""
    deadline, ended = time.monotonic() + seconds, {}
    while len(ended) < len(ids):
        assert time.monotonic() < deadline, f"{len(ended)} of {len(ids)} ended"
        for name in set(ids) - set(ended):
            try:
                answer = client.get(f"/v1/videos/{name}")
            except httpx.TransportError:
                continue
            if answer.status_code == 200 and answer.json()["status"] in ("completed", "failed"):
                ended[name] = answer.json()
        time.sleep(0.1)
    return [ended[name] for name in ids]


def until(happened: Callable[[], Any], seconds: float = 240) -> Any:
    """Poll `happened` until it is true; return its value."""
    deadline = time.monotonic() + seconds
    while not (value := happened()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def processes(name: str) -> list[psutil.Process]:
    """The processes below this one that Ray calls so."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()):
                found.append(child)
    return found
