"""Clients that neither read nor send, or hold many requests open, lose their place, and others are answered."""

import asyncio
import contextlib
import io
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Message

from pipelines.serving.batch import files
from pipelines.serving.http import pace
from pipelines.serving.http.api_keys import digest
from pipelines.serving.settings import ServeSettings
from tests.pipelines.serving.in_process import Stub, application, listening, send

SIZE = 24 << 20  # more than the buffers of two sockets hold


def connect(address: str, request: str) -> socket.socket:
    """Open a connection with a small buffer, and send a request, or a part of one; reads nothing."""
    url = urlsplit(address)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((url.hostname, url.port))
    client.sendall(request.replace("\n", "\r\n").encode())
    return client


def test_a_client_that_takes_or_sends_nothing_loses_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AT_ONCE", 2)
    monkeypatch.setattr(pace, "PART_S", 10.0)  # both transfers are counted within it, however slow the machine is
    settings = ServeSettings(output=str(tmp_path), page=False)
    app = application(settings, Stub(settings))
    with listening(app) as address, httpx.Client(base_url=f"{address}/v1/files", timeout=30) as client:
        service = app.state.service
        service.files.add("file_" + "0" * 32, "everyone", "a", "batch", io.BytesIO(bytes(SIZE)))
        content = f"/file_{'0' * 32}/content"
        reader = connect(address, f"GET /v1/files{content} HTTP/1.1\nHost: a\n\n")
        form = "Content-Type: multipart/form-data; boundary=b\nContent-Length: 1000"
        sender = connect(address, f"POST /v1/files HTTP/1.1\nHost: a\n{form}\n\n--b\n")
        body = "Content-Type: application/json\nContent-Length: 1000"
        staller = connect(address, f"POST /v1/videos HTTP/1.1\nHost: a\n{body}\n\n{{")
        with reader, sender, staller:
            deadline = time.monotonic() + 30
            while service.files.transfers.total() < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert client.get(content).status_code == 429
            while (answer := client.get(content)).status_code == 429:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert len(answer.content) == SIZE
            sender.settimeout(30)
            assert sender.recv(1 << 16).startswith(b"HTTP/1.1 408")
            staller.settimeout(30)
            assert staller.recv(1 << 16).startswith(b"HTTP/1.1 408")
            reader.settimeout(30)
            assert sum(map(len, iter(lambda: reader.recv(1 << 16), b""))) < SIZE
        while service.files.transfers:  # the last download has all its bytes a moment before its file is closed
            assert time.monotonic() < deadline + 30
            time.sleep(0.01)


def test_an_upload_to_the_page_that_stalls_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PART_S", 2.0)
    settings = ServeSettings(output=str(tmp_path))
    form = "Content-Type: multipart/form-data; boundary=b\nContent-Length: 1000"
    with (
        listening(application(settings, Stub(settings), with_page=True)) as address,
        connect(address, f"POST /ui/gradio_api/upload HTTP/1.1\nHost: a\n{form}\n\n--b\n") as client,
    ):
        client.settimeout(30)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 500")  # gradio's answer when a client has gone


def test_a_key_holds_100_requests_open_and_others_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("".join(f"- {{name: {name}, sha256: {digest(name)}}}\n" for name in ("anna", "ben")))
    settings = ServeSettings(output=str(tmp_path / "out"), keys_file=str(keys), page=False)
    app = application(settings, Stub(settings))
    monkeypatch.setattr(app.state.service.dispatcher, "submit", lambda job: None)  # the video stays queued
    anna, ben = ({"Authorization": f"Bearer {name}"} for name in ("anna", "ben"))
    with (
        listening(app) as address,
        httpx.Client(base_url=address, timeout=30, limits=httpx.Limits(max_connections=200)) as client,
        contextlib.ExitStack() as streams,
    ):
        events = f"/v1/videos/{send(client, headers=anna).json()['id']}/events"  # type: ignore[arg-type]
        opened = [
            streams.enter_context(client.stream("GET", events, headers=anna)) for _ in range(pace.MOST_OPEN_PER_KEY)
        ]
        assert {answer.status_code for answer in opened} == {200}
        refused = client.get("/v1/videos", headers=anna)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["Retry-After"] == "5"
        others = [("/v1/videos", ben, 200), ("/health/live", {}, 200), ("/metrics", anna, 200), ("/v1/videos", {}, 401)]
        for path, headers, status in others:
            assert client.get(path, headers=headers).status_code == status
        opened[0].close()
        deadline = time.monotonic() + 30
        while client.get("/v1/videos", headers=anna).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        monkeypatch.setattr(pace, "MOST_OPEN", 99)
        assert client.get("/v1/videos", headers=ben).status_code == 429


def test_a_body_that_waits_for_its_turn_does_not_count_as_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PART_S", 0.5)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def after_its_turn() -> Message:
        limited = pace.limit_receive(receive)
        await asyncio.sleep(0.6)
        return await limited()

    assert asyncio.run(after_its_turn())["type"] == "http.request"
