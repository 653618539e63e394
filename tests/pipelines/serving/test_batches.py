"""Batches: a file of requests becomes videos and a file of results, once, even if the service is restarted."""

import base64
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from openai import OpenAI

from pipelines.serving.batch import files, runner
from pipelines.serving.jobs import tables
from pipelines.serving.settings import Limits, ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.in_process import Stub, application, listening, png, serve
from tests.pipelines.serving.test_store import url  # noqa: F401 - a fixture

ENDED = ("completed", "failed", "cancelled")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.05)


def line(name: str, **changes: Any) -> dict[str, Any]:
    body = {"prompt": "a cat", "input_reference": base64.b64encode(png()).decode(), "seed": 1} | changes.pop("body", {})
    return {"custom_id": name, "method": "POST", "url": "/v1/videos", "body": body, **changes}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def until(happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (value := happened()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def test_openais_client_sends_a_batch_and_reads_its_results(tmp_path: Path, url: str) -> None:  # noqa: F811
    settings = ServeSettings(output=str(tmp_path), store=url, page=False, lease_s=1)
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


def upload(client: TestClient, data: bytes, **headers: str) -> Any:
    return client.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "batch"}, headers=headers)


def start(client: TestClient, data: bytes) -> str:
    file_id = upload(client, data).json()["id"]
    answer = client.post("/v1/batches", json={"input_file_id": file_id, "endpoint": "/v1/videos"})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def ended(client: TestClient, batch_id: str) -> dict[str, Any]:
    return until(lambda: (now := client.get(f"/v1/batches/{batch_id}").json())["status"] in ENDED and now)


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


def test_a_file_that_is_no_batch_and_a_batch_that_is_none_are_refused(tmp_path: Path) -> None:
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
