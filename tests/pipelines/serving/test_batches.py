"""Batches: a file of requests becomes videos and a file of results, once, even if the service is restarted."""

import asyncio
import contextlib
import gc
import io
import json
import os
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from fastapi import Request
from fastapi.testclient import TestClient
from openai import OpenAI

from pipelines.serving.batch import batches, files, runner
from pipelines.serving.http import body
from pipelines.serving.jobs import tables
from pipelines.serving.settings import Limits, ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.batch_client import ENDED, ended, jsonl, line, start, until, upload
from tests.pipelines.serving.in_process import Stub, application, listening, serve


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.05)


def test_openais_client_sends_a_batch_and_reads_its_results(tmp_path: Path, database_url: str) -> None:
    settings = ServeSettings(output=str(tmp_path), store=database_url, page=False, lease_s=1)
    with listening(application(settings, Stub(settings))) as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        wrong = {"prompt": "a cat", "input_reference": "http://example.com/a.png"}
        sent = jsonl(line("one"), line("two", body={"prompt": "fail"}), line("three", body=wrong), line("four"))
        (tmp_path / "sent.jsonl").write_bytes(sent.replace(b"\n", b"\n\n"))
        file = client.files.create(file=open(tmp_path / "sent.jsonl", "rb"), purpose="batch")  # noqa: SIM115
        assert (file.filename, file.bytes) == ("sent.jsonl", len(sent) + 4)
        assert client.files.content(file.id).content.replace(b"\n\n", b"\n") == sent
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/videos", completion_window="24h", metadata={"for": "a test"}
        )
        assert batch.status == "validating"
        done = until(lambda: (now := client.batches.retrieve(batch.id)).status in ENDED and now)
        assert (done.status, done.metadata) == ("completed", {"for": "a test"})
        assert done.completed_at >= done.created_at
        assert done.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 2}
        output = [json.loads(one) for one in client.files.content(done.output_file_id).text.splitlines()]
        assert [one["custom_id"] for one in output] == ["one", "four"]
        for one in output:
            video = one["response"]["body"]
            assert (one["response"]["status_code"], video["status"]) == (200, "completed")
            assert client.videos.retrieve(video["id"]).status == "completed"
        failed, refused = [json.loads(one) for one in client.files.content(done.error_file_id).text.splitlines()]
        assert (failed["custom_id"], failed["error"]["code"]) == ("two", "server_error")
        assert (refused["custom_id"], refused["response"]["status_code"]) == ("three", 422)
        assert refused["response"]["body"]["error"]["param"] == "input_reference"
        made = [done.error_file_id, done.output_file_id, file.id]
        assert {one.id for one in client.files.list()} == set(made)
        assert client.files.list().data[-1] == client.files.list(order="asc").data[0] == client.files.retrieve(file.id)
        assert [one.id for one in client.files.list(limit=1, order="asc")] == [
            one.id for one in reversed(client.files.list().data)
        ]  # page by page
        assert [one.id for one in client.files.list(purpose="batch")] == [file.id]
        assert client.files.list(after=file.id).data == []
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert client.batches.list(after=batch.id).data == []
        client.files.delete(file.id)
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        for missing in ("file_" + "0" * 32, "nothing", "a\0b"):
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(missing)
            with pytest.raises(openai.NotFoundError):
                client.batches.retrieve(missing)


def test_a_file_is_received_and_sent_in_parts_and_few_at_a_time(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path), page=False)
    with serve(settings, Stub(settings)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        one = upload(client, b"{}").json()["id"]
        with contextlib.ExitStack() as running:
            for _ in range(files.AT_ONCE_OF_OWNER):
                running.enter_context(service.files.transfer("a"))
            with pytest.raises(files.ApiError):
                running.enter_context(service.files.transfer("a"))
            for number in range(files.AT_ONCE - files.AT_ONCE_OF_OWNER):
                running.enter_context(service.files.transfer(f"another {number}"))
            for refused in (upload(client, b"{}"), client.get(f"/v1/files/{one}/content")):
                assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        head = client.head(f"/v1/files/{one}/content")
        assert (head.status_code, head.headers["content-length"]) == (200, "2")
        assert client.get(f"/v1/files/{one}/content").content == b"{}"
        gc.collect()
        assert service.files.transfers == {}

    part, number = b"x" * (1 << 19), 64
    first = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    sent = iter([first, *[part] * number, b"\r\n--b--\r\n"])
    scope = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=b")]}

    async def receive() -> Any:
        data = next(sent, None)
        return {"type": "http.request", "body": data or b"", "more_body": data is not None}

    async def both() -> int:
        async with body.read_form(Request(scope, receive), 1 << 30, "file") as fields:
            made = service.files.add("file_" + "0" * 32, "everyone", "a", "batch", fields["file"].file)
        size, parts = service.files.open(made.id, "everyone")
        assert size == sum(map(len, parts)) == len(part) * number
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        assert asyncio.run(both()) < 8 << 20  # of 32 MB
    finally:
        tracemalloc.stop()


def test_quotas_hold_for_requests_at_the_same_moment(
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "MOST_ACTIVE", 3)
    settings = ServeSettings(output=str(tmp_path), limits=Limits(max_file_bytes=10), store=database_url)
    database, together = Store(database_url).database, threading.Barrier(8)
    stored, known = files.Files(settings, database), batches.Batches(settings, database)

    def both(number: int) -> tuple[bool, bool]:
        together.wait(30)
        made = [False, False]
        with contextlib.suppress(files.ApiError):
            made[0] = bool(stored.add(f"file_{number:032x}", "a", "x", "batch", io.BytesIO(b"x" * 33)))
        with contextlib.suppress(files.ApiError):
            made[1] = bool(known.create(f"batch_{number:032x}", "a", "file_1", None))
        return made[0], made[1]

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(both, range(8)))
    assert [sum(column) for column in zip(*made, strict=True)] == [3, 3]


def test_a_batch_stays_with_the_process_that_reads_it_for_longer_than_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, reads, read = ServeSettings(output=str(tmp_path), page=False, lease_s=3), [], runner.read_spans

    def slowly(*arguments: Any) -> Any:
        reads.append(arguments)
        for service in (one.app.state.service for one in (client, other)):
            if service.runner.tasks:
                monkeypatch.setattr(service.batches, "take", lambda *_: [])  # only the other one may take it again
        time.sleep(1.5 * settings.lease_s)
        return read(*arguments)

    monkeypatch.setattr(runner, "read_spans", slowly)
    with serve(settings, Stub(settings)) as client, serve(settings, Stub(settings)) as other:
        assert ended(client, start(client, jsonl(line("one"))))["status"] == "completed"
    assert len(reads) == 1


def test_a_restart_sends_no_line_twice_and_loses_none_though_the_queue_is_short(tmp_path: Path) -> None:
    limits = Limits(max_queue=4)
    settings = ServeSettings(output=str(tmp_path), page=False, lease_s=0.5, limits=limits)
    store = Store(settings.store_url)
    with TestClient(application(settings, Stub(settings))) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        service.dispatcher.animate["builtin:tiny"] = lambda *_: runner.asyncio.sleep(3600)  # a replica that hangs
        batch_id = start(client, jsonl(*(line(f"{number}") for number in range(7))))
        until(lambda: store.counts().get("queued") == 2)
        file_id = client.get(f"/v1/batches/{batch_id}").json()["input_file_id"]
        assert client.delete(f"/v1/files/{file_id}").status_code == 409
        with store.database.transaction() as connection:
            connection.execute(tables.files.update().values(expires_at=0.0))
        service.files.delete_expired()
        assert client.get(f"/v1/files/{file_id}").status_code == 200  # the batch still needs it
        counts = client.get(f"/v1/batches/{batch_id}").json()["request_counts"]
        assert counts == {"total": 7, "completed": 0, "failed": 0}
    stub = Stub(settings)
    with serve(settings, stub) as client:
        done = ended(client, batch_id)
        assert done["request_counts"] == {"total": 7, "completed": 7, "failed": 0}
        output = client.get(f"/v1/files/{done['output_file_id']}/content").text.splitlines()
        assert [json.loads(one)["custom_id"] for one in output] == [f"{number}" for number in range(7)]
        assert store.counts() == {"completed": 7}
        assert store.database.all(sa.select(tables.lines)) == []
        # What has expired is gone, from the output, too.
        with store.database.transaction() as connection:
            connection.execute(tables.files.update().values(expires_at=0.0))
            connection.execute(tables.batches.update().values(expires_at=0.0))
        half = tmp_path / "files" / f".file_{0:032x}.jsonl.0a1b2c3d"  # of a process that was killed
        half.write_bytes(b"{")
        files.Files(settings, store.database).delete_expired()
        assert half.exists()  # perhaps it is being written
        os.utime(half, (0, 0))
        files.Files(settings, store.database).delete_expired()
        client.app.state.service.batches.delete_expired()  # type: ignore[attr-defined]
        assert list((tmp_path / "files").iterdir()) == []
        assert client.get(f"/v1/batches/{batch_id}").status_code == 404


def test_the_job_of_a_line_that_was_sent_but_not_recorded_is_found_though_the_line_would_now_be_refused(
    tmp_path: Path,
) -> None:
    settings = ServeSettings(output=str(tmp_path), page=False, lease_s=0.5)
    lines = jsonl(line("one", body={"quality": "hd"}), line("two"))
    dying = threading.Event()

    def die(*_: Any) -> None:
        dying.set()
        raise InterruptedError("as a process that dies here, this one records nothing")

    with serve(settings, Stub(settings)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        service.batches.record = die
        start(client, lines)
        assert dying.wait(30)
    strict = settings.model_copy(update={"strict": True})
    store = Store(settings.store_url)
    (job,) = store.get_all([row.id for row in store.database.all(sa.select(tables.jobs.c.id))])
    with serve(strict, Stub(strict)) as client:
        (batch,) = client.get("/v1/batches").json()["data"]
        done = ended(client, batch["id"])
        assert done["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
        output = client.get(f"/v1/files/{done['output_file_id']}/content").text.splitlines()
        videos = [json.loads(one)["response"]["body"]["id"] for one in output]
        assert videos[0] == job.id
        assert store.counts() == {"completed": 2}


def test_a_cancelled_batch_ends_its_open_videos_and_keeps_the_others(tmp_path: Path) -> None:
    settings = ServeSettings(output=str(tmp_path), page=False, lease_s=1, limits=Limits(max_queue=4))
    stub = Stub(settings)
    with TestClient(application(settings, stub)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]

        async def animate(job_id: str, shape: str) -> dict[str, Any]:
            if stub.begun:  # only the first ends
                await runner.asyncio.sleep(3600)
            return await stub.animate(job_id, shape)

        service.dispatcher.animate["builtin:tiny"] = animate
        batch_id = start(client, jsonl(*(line(f"{number}") for number in range(9))))
        until(lambda: client.get(f"/v1/batches/{batch_id}").json()["request_counts"]["completed"] == 1)
        assert client.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
        done = ended(client, batch_id)
        assert done["status"] == "cancelled"
        assert done["cancelled_at"] >= done["created_at"]
        errors = client.get(f"/v1/files/{done['error_file_id']}/content").text.splitlines()
        assert {json.loads(one)["error"]["code"] for one in errors} == {"cancelled"}
        assert set(service.store.counts()) == {"completed", "failed"}
        assert client.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelled"


def test_a_file_that_is_no_batch_and_a_batch_that_is_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(max_file_bytes=30_000, max_lines=3, max_bytes=20_000)
    settings = ServeSettings(output=str(tmp_path), page=False, lease_s=1, limits=limits)
    small = {"input_reference": "AAAA"}
    with serve(settings, Stub(settings)) as client:
        for lines, sentence in [
            (b"", "no requests"),
            (b"\n{]\n", "not JSON"),
            (b"[1]\n", "the line is not"),
            (b'{"a":[' + b"[]," * 8000 + b"1]}\n", "more than 20,000 bytes"),
            (jsonl(line("\ud800", body=small), line("\ud800", body=small)), "given twice"),
            (jsonl(line("a", body=small), line("a", body=small)), "given twice"),
            (jsonl(line("", body=small)), "custom_id"),
            (jsonl(line("a", body=small, url="/v1/images")), "should be POST"),
            (jsonl(*(line(f"{number}", body=small) for number in range(4))), "more than 3 requests"),
            (b"\xff\xfe\x00\n", "not JSON"),
        ]:
            done = ended(client, start(client, lines))
            assert done["status"] == "failed"
            assert sentence in done["errors"]["data"][0]["message"], done
            assert done["request_counts"]["total"] == 0
        assert client.get("/v1/videos").json()["data"] == []
        assert upload(client, b"x" * 40_000).status_code == 413
        for form in ({"purpose": "fine-tune"}, {}):
            refused = client.post("/v1/files", files={"file": ("a", b"x")}, data=form)
            assert refused.json()["error"]["param"] == "purpose"
        assert client.post("/v1/files", files={"purpose": (None, "batch")}).json()["error"]["param"] == "file"
        assert client.post("/v1/files", json={"file": "x"}).status_code == 415
        assert client.get("/v1/batches").status_code == 200
        file_id = upload(client, b"{}").json()["id"]
        for asked, status in [
            ({"input_file_id": file_id, "endpoint": "/v1/images"}, 422),
            ({"endpoint": "/v1/videos"}, 422),
            ({"input_file_id": "file_" + "0" * 32, "endpoint": "/v1/videos"}, 404),
            ({"input_file_id": file_id, "endpoint": "/v1/videos", "completion_window": "1h"}, 422),
            ({"input_file_id": file_id, "endpoint": "/v1/videos", "metadata": {"a": "x" * 600}}, 422),
        ]:
            assert client.post("/v1/batches", json=asked).status_code == status, asked
        for _ in range(files.FILES_OF_OWNER + 1):
            last = upload(client, b"x" * 29_000)
        assert last.status_code == 413
        assert "delete some" in last.json()["error"]["message"]
        monkeypatch.setattr(files, "MOST_FILES", 3)  # of no bytes, too
        assert upload(client, b"").json()["error"]["message"].endswith("files; delete some")
