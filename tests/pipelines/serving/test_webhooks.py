"""Webhooks: each end of a video is delivered, signed, however long the receiver or the service is away."""

import asyncio
import base64
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from openai import InvalidWebhookSignatureError, OpenAI
from pydantic import ValidationError

from pipelines.serving import webhooks
from pipelines.serving.jobs import webhook_events
from pipelines.serving.jobs.tables import events as table
from pipelines.serving.jobs.webhook_events import Event
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.in_process import Stub, send, serve, wait
from tests.pipelines.serving.jobs import job, keep
from tests.pipelines.serving.receiver import Receiver

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webhooks.SECRET, SECRET)
    monkeypatch.setattr(webhooks, "POLL_S", 0.05)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.stop()


def settings_for(receiver: Receiver, folder: Path, **changes: Any) -> ServeSettings:
    hooks = {"url": f"{receiver.address}/hook", "retry_s": 0.2, **changes}
    return ServeSettings(output=str(folder), webhooks=hooks, private_hosts=["127.0.0.1"], page=False, lease_s=1)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_ended_while_receiver_and_service_were_away_is_delivered_and_openai_takes_it(
    tmp_path: Path, receiver: Receiver
) -> None:
    settings = settings_for(receiver, tmp_path)
    with serve(settings, Stub(settings)) as client:
        ids = [send(client, prompt=prompt).json()["id"] for prompt in ("a cat", "fail", "a dog")]
        ended = {video_id: wait(client, video_id)["status"] for video_id in ids}
        assert Counter(ended.values()) == {"completed": 2, "failed": 1}
        outbox = Store(settings.store_url).database
        until(lambda: outbox.first(sa.select(sa.func.min(table.c.tries)))[0] >= 2)  # tried, while nobody listens
    receiver.answer = lambda path: (500 if len(receiver.received) < 2 else 204, {}, b"")
    receiver.start()
    with serve(settings, Stub(settings)):  # the service was stopped in between
        until(lambda: webhook_events.count(outbox) == 0)
    accepted = [one for one in receiver.received if one.status == 204]
    openai = OpenAI(api_key="none", webhook_secret=SECRET)
    unwrapped = [openai.webhooks.unwrap(one.body, one.headers) for one in accepted]
    assert {event.data.id: event.type for event in unwrapped} == {
        video_id: f"video.{status}" for video_id, status in ended.items()
    }
    assert len(accepted) == 3  # each once
    assert {(event.object, type(event.created_at)) for event in unwrapped} == {("event", int)}
    for one, event in zip(accepted, unwrapped, strict=True):
        assert one.headers["webhook-id"] == event.id
    refused = [one for one in receiver.received if one.status == 500]
    assert {one.headers["webhook-id"] for one in refused} <= {event.id for event in unwrapped}  # the same ids again
    with pytest.raises(InvalidWebhookSignatureError):
        openai.webhooks.unwrap(accepted[0].body + b" ", accepted[0].headers)


def test_a_request_may_name_its_own_receiver_only_where_that_is_allowed_and_no_private_one(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.start()
    own = f"{receiver.address}/own"
    for changes, status in [({}, 422), ({"by_request": True}, 200)]:
        settings = settings_for(receiver, tmp_path / str(status), **changes)
        with serve(settings, Stub(settings)) as client:
            answer = send(client, webhook_url=own)
            assert answer.status_code == status, answer.text
            for bad in ("ftp://example.com", "http://10.0.0.1/", "https://a:b@example.com/", "http://[::1", "x"):
                refusal = send(client, webhook_url=bad)
                assert (refusal.status_code, refusal.json()["error"]["param"]) == (422, "webhook_url"), bad
            if status == 200:
                until(lambda: [one.path for one in receiver.received] == ["/own"])


def test_a_receiver_that_hangs_delays_no_other_owners_webhooks(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AT_ONCE": 4, "AT_ONCE_OF_OWNER": 3, "TIMEOUT_S": 600.0}.items():
        monkeypatch.setattr(webhooks, name, value, raising=False)
    monkeypatch.setenv("CINEMO_API_KEYS", "first,second")
    over = threading.Event()
    receiver.answer = lambda path: (over.wait(60) and 200 if path == "/hangs" else 200, {}, b"")
    receiver.start()
    settings = settings_for(receiver, tmp_path, by_request=True, retry_s=60)
    with serve(settings, Stub(settings)) as client:
        for _ in range(6):
            hanging = {"webhook_url": f"{receiver.address}/hangs", "headers": {"Authorization": "Bearer first"}}
            assert send(client, **hanging).status_code == 200
        outbox = client.app.state.service.outbox  # type: ignore[attr-defined]
        until(lambda: len(outbox.running) >= 3)
        for _ in range(3):
            own = {"webhook_url": f"{receiver.address}/own", "headers": {"Authorization": "Bearer second"}}
            assert send(client, **own).status_code == 200
        until(lambda: [one.path for one in receiver.received] == ["/own"] * 3)
        over.set()
        until(lambda: len(receiver.received) == 9)


@pytest.mark.parametrize("host", ["127.1", "2130706433", "receiver.example.com"])
def test_a_name_that_leads_to_a_private_address_gets_nothing(
    tmp_path: Path, receiver: Receiver, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(*given: Any, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", receiver.port))]

    if host == "receiver.example.com":  # whose name server is not ours
        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", look_up)
    receiver.start()
    settings = ServeSettings(output=str(tmp_path), webhooks={"url": f"http://{host}:{receiver.port}/"})
    outbox = webhooks.Outbox(settings, Store(settings.store_url).database, SECRET)
    problem = asyncio.run(outbox._post(Event("evt_1", "video.completed", "video_1", "", 1.0, 1)))
    assert problem is not None
    assert ("is a private address" if host == "receiver.example.com" else "not a canonical IPv4 address") in problem
    assert receiver.received == []


def test_an_event_is_stored_once_and_taken_by_one_process_at_a_time(database_url: str) -> None:
    stores = [Store(database_url) for _ in range(4)]
    keep(stores[0], *(job(number, id=f"video_{number:032x}", webhook="") for number in range(16)), job(99))
    for number in range(16):
        job_id = f"video_{number:032x}"
        assert stores[0].claim(job_id, "r", 60, alone=True) is not None
        for _ in range(2):  # its answer was lost: the same again
            assert stores[0].complete(job_id, 1, {}, ttl_s=100)
        assert not stores[0].fail(job_id, None, "cancelled", "too late", ttl_s=100)
    assert stores[0].fail("video_0099", None, "cancelled", "nobody is told", ttl_s=100)
    assert webhook_events.count(stores[0].database) == 16

    def take(number: int) -> list[Event]:
        taken = list[Event]()
        while some := webhook_events.take_due(stores[number].database, 3, 60):
            taken += some
        return taken

    with ThreadPoolExecutor(4) as processes:
        taken = [event for some in processes.map(take, range(4)) for event in some]
    assert sorted(event.subject for event in taken) == [f"video_{number:032x}" for number in range(16)]
    assert {(event.type, event.tries) for event in taken} == {("video.completed", 1)}


def test_pauses_double_up_to_an_hour_and_an_old_event_is_given_up(store: Store) -> None:
    keep(store, job(1, webhook="https://example.com/"))
    store.fail("video_0001", None, "cancelled", "enough", ttl_s=100)
    pauses = []
    for _ in range(14):
        with store.database.transaction() as connection:
            connection.execute(table.update().values(next_at=0.0))
        (event,) = webhook_events.take_due(store.database, 9, 2.0)
        row = store.database.first(sa.select(table.c.next_at - store.database.now))
        pauses.append(round(row[0]))
    assert pauses[:3] == [2, 4, 8]
    assert pauses[-1] == webhook_events.LONGEST_PAUSE_S == 3600
    assert (event.url, event.type, event.tries) == ("https://example.com/", "video.failed", 14)
    assert not webhook_events.give_up(store.database, event.id, 1000)
    assert webhook_events.give_up(store.database, event.id, -1)
    assert webhook_events.count(store.database) == 0


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("http://127.0.0.1/", "http://localhost/", "http://169.254.169.254/", "nothing", "ftp://example.com/"):
        with pytest.raises(ValidationError, match=r"webhooks\.url"):
            ServeSettings(webhooks={"url": bad})
    used = ServeSettings(webhooks={"url": "https://example.com/hook"})
    for bad in ("", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_%%%%"):
        monkeypatch.setenv(webhooks.SECRET, bad)
        with pytest.raises(ValueError, match=webhooks.SECRET):
            webhooks.secret_from_environment(used)
        assert webhooks.secret_from_environment(ServeSettings()) == ""
