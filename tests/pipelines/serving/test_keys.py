"""Keys in a file: changed while the service runs, with names, and quotas of open jobs and of a minute's requests."""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi.testclient import TestClient
from pydantic import ValidationError

from pipelines.serving import service as services
from pipelines.serving.http import api_keys, body
from pipelines.serving.http.api_keys import Keys, digest, from_environment, from_file
from pipelines.serving.settings import Limits, ServeSettings
from tests.pipelines.serving.in_process import FAST, Stub, application, png, send, serve


def write(path: Path, *entries: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump(list(entries)))


def entry(name: str, key: str, **quotas: int) -> dict[str, object]:
    return {"name": name, "sha256": digest(key), **quotas}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_keys_change_without_a_restart_and_a_new_key_of_a_name_sees_its_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(api_keys, "READ_EVERY_S", 0.05)
    path = tmp_path / "keys.yaml"
    settings = ServeSettings(output=str(tmp_path / "out"), keys_file=str(path), page=False)
    write(path, entry("anna", "old"))
    caplog.set_level(logging.INFO, "ray.serve")

    def wait_for(client: TestClient, key: str, status: int) -> None:
        deadline = time.monotonic() + 30
        while client.get("/v1/videos", headers=bearer(key)).status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with serve(settings, Stub(settings)) as client:
        assert client.get("/v1/videos").status_code == 401
        video = send(client, headers=bearer("old")).json()["id"]
        logged = next(vars(record) for record in caplog.records if record.msg == "queued")
        assert (logged["job"], logged["key"]) == (video, "anna")
        write(path, entry("anna", "new"), entry("ben", "other"))
        wait_for(client, "other", 200)
        assert client.get("/v1/videos", headers=bearer("old")).status_code == 401
        assert client.get(f"/v1/videos/{video}", headers=bearer("new")).status_code == 200
        assert client.get(f"/v1/videos/{video}", headers=bearer("other")).status_code == 404
        path.write_text("- {name: anna")  # half a file
        deadline = time.monotonic() + 30
        while not any("the keys are still those of before" in record.getMessage() for record in caplog.records):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.get("/v1/videos", headers=bearer("new")).status_code == 200
        path.write_text("[" * 5000)  # no YAML parser takes it, and the loop goes on
        time.sleep(0.2)
        write(path, entry("ben", "other"), entry("nobody", ""))  # the hash of a key that was not set
        wait_for(client, "new", 401)
        assert client.get("/v1/videos").status_code == 401
        path.write_text("")  # nobody, rather than everybody
        wait_for(client, "other", 401)
        assert client.get("/v1/videos").status_code == 401


def test_a_new_key_gets_the_videos_of_a_leaked_one_of_the_environment(tmp_path: Path) -> None:
    leaked, path = digest("leaked"), tmp_path / "keys.yaml"
    write(path, entry(leaked[:32], "new"))
    before = Keys(ServeSettings(), [leaked]).owner("Bearer leaked")
    assert Keys(ServeSettings(keys_file=str(path)), []).owner("Bearer new") == before


def test_quotas_of_open_videos_and_of_a_minute_are_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.yaml"
    write(
        path,
        entry("anna", "a", max_open=2, priority=4),
        entry("ben", "b", per_minute=3),
        entry("ben", "c"),
        entry("cleo", "d"),
    )
    limits = Limits(max_queue=100, max_queue_per_key=50, per_minute=50)
    settings = ServeSettings(output=str(tmp_path / "out"), keys_file=str(path), page=False, limits=limits)
    with TestClient(application(settings, Stub(settings))) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        monkeypatch.setattr(service.dispatcher, "submit", lambda job: None)  # nothing is made
        assert [service.dispatcher.priority(name) for name in ("anna", "ben", "nobody")] == [4, 1, 1]
        assert [send(client, headers=bearer("a")).status_code for _ in range(3)] == [200, 200, 429]
        answers = [send(client, headers=bearer(key)) for key in "bcbbd"]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 200]
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answers[3].headers["Retry-After"]) <= 60
        wrong = send(client, b"no image", headers=bearer("d"))
        assert wrong.status_code == 422
        assert len(service.keys.recent["cleo"]) == 2  # refused requests count, too
        monkeypatch.setattr(api_keys, "MINUTE_S", 0.0)
        assert send(client, headers=bearer("b")).status_code == 200


def test_several_ingresses_allow_a_part_each(tmp_path: Path) -> None:
    settings = ServeSettings(store="postgresql://nowhere/x", ingress_replicas=4, limits=Limits(per_minute=10))
    known = Keys(settings, [digest("a"), digest("b")])
    for _ in range(3):
        known.count("owner")
    with pytest.raises(api_keys.ApiError):
        known.count("owner")
    known.count("another")
    assert (known.owners, known.max_open("owner")) == (2, 50)


def test_a_file_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CINEMO_API_KEYS", raising=False)
    path = tmp_path / "keys.yaml"
    with pytest.raises(ValueError, match="does not exist"):
        from_file(str(path))
    for text, sentence in [
        ("- {name: anna}", r"0\.sha256: Field required"),
        ("- {name: anna, sha256: secret}", r"0\.sha256: String should match"),
        ("- {name: 'an na', sha256: " + "0" * 64 + "}", r"0\.name"),
        ("anna: secret", "should be a valid list"),
        ("- [", "is not YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence) as caught:
            from_file(str(path))
        assert "secret" not in str(caught.value)  # perhaps it is the key itself
    assert from_environment(ServeSettings(require_keys=True, keys_file=str(path))) == []
    with pytest.raises(ValidationError):
        ServeSettings(keys_file=3)  # type: ignore[arg-type]


def test_a_key_has_some_of_its_requests_worked_on_at_a_time_and_other_keys_do_not_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five hundred bodies of 20 MB were held in memory while they waited for the decoders."""
    monkeypatch.setenv("CINEMO_API_KEYS", "first,second")
    monkeypatch.setattr(services, "AT_ONCE", 3)
    monkeypatch.setattr(services, "AT_ONCE_OF_OWNER", 2)
    settings, reads, read = ServeSettings(output=str(tmp_path), page=False), list[bool](), body.read

    async def watched(*arguments: Any) -> Any:
        reads.append(True)
        return await read(*arguments)

    monkeypatch.setattr(body, "read", watched)

    async def send_all() -> list[int]:
        app, go_on = application(settings, Stub(settings)), asyncio.Event()
        submit = app.state.service.submit

        async def slowly(*arguments: Any) -> Any:
            await go_on.wait()
            return await submit(*arguments)

        app.state.service.submit = slowly
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:

            async def post(key: str) -> int:
                files = {"input_reference": ("a.png", png(), "image/png")}
                sent = {"data": {"prompt": "a cat", **FAST}, "files": files, "headers": bearer(key)}
                return (await client.post("/v1/videos", **sent)).status_code

            requests = [asyncio.create_task(post("first")) for _ in range(6)]
            await asyncio.sleep(0.5)
            assert len(reads) == 2
            edit = await client.post("/v1/videos/edits", json={"prompt": "a cat"}, headers=bearer("first"))
            assert edit.status_code == 422  # at once: edits have slots of their own
            requests += [asyncio.create_task(post("second")) for _ in range(2)]
            await asyncio.sleep(0.5)
            assert len(reads) == 4
            go_on.set()
            return await asyncio.gather(*requests)

    assert asyncio.run(send_all()) == [200] * 8
