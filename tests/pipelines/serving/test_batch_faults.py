"""A batch goes on after faults of others: images' hosts, decoders, and a storage that is away while it is cancelled."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.batch import runner
from pipelines.serving.batch.batches import Batches
from pipelines.serving.http import uploads
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.batch_client import ended, jsonl, line, start, until
from tests.pipelines.serving.decoders import size_or_death
from tests.pipelines.serving.in_process import Stub, png, send, serve
from tests.pipelines.serving.receiver import Receiver


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "POLL_S", 0.05)


class Hanging(Stub):
    """A replica that ends no job."""

    async def animate(self, job_id: str, shape: str) -> dict[str, Any]:
        await runner.asyncio.sleep(3600)
        return {}


def test_a_batch_that_is_cancelled_while_the_storage_is_away_ends_its_videos_at_once_and_writes_its_output_later(
    tmp_path: Path,
) -> None:
    settings = ServeSettings(output=str(tmp_path), page=False, lease_s=0.5)
    store = Store(settings.store_url)
    with serve(settings, Hanging(settings)) as client:
        batch_id = start(client, jsonl(line("one"), line("two")))
        until(lambda: store.counts() == {"queued": 2})
    Batches(settings, store.database).cancel(batch_id, "everyone")
    away = (tmp_path / "files").rename(tmp_path / "away")
    with serve(settings, Hanging(settings)) as client:
        until(lambda: store.counts() == {"failed": 2})
        runner.time.sleep(2 * settings.lease_s)
        assert client.get(f"/v1/batches/{batch_id}").json()["status"] == "cancelling"
        away.rename(tmp_path / "files")
        done = ended(client, batch_id)
        assert (done["status"], done["request_counts"]) == ("cancelled", {"total": 2, "completed": 0, "failed": 2})
        assert client.get(f"/v1/files/{done['error_file_id']}/content").text.count("the batch was cancelled") == 2


def with_images_of(host: Receiver, folder: Path) -> ServeSettings:
    images = {"allow": [f"{host.address}/"], "timeout_s": 1.0}
    return ServeSettings(output=str(folder), page=False, image_urls=images, private_hosts=["127.0.0.1"])


@pytest.mark.parametrize("is_up", [False, True])
def test_lines_wait_for_the_host_of_their_images(tmp_path: Path, is_up: bool) -> None:
    """A few minutes without it failed thousands of lines for good."""
    host, image = Receiver(), png()
    host.answer = lambda path: (503, {}, b"")
    if is_up:
        host.start()
    settings = with_images_of(host, tmp_path)
    with serve(settings, Stub(settings)) as client:
        url = f"{host.address}/cat.png"
        refused = client.post("/v1/videos", json={"prompt": "", "input_reference": url})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "image_away")
        lines = [line(f"{number}", body={"input_reference": url}) for number in range(3)]
        batch_id = start(client, jsonl(*lines, line("with its image")))
        until(lambda: client.get(f"/v1/batches/{batch_id}").json()["request_counts"]["completed"])
        host.answer = lambda path: (200, {}, image)
        if not is_up:
            host.start()
        assert ended(client, batch_id)["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
    host.stop()


def test_lines_whose_host_stays_away_fail_together_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE_S", 2.0)
    host = Receiver()
    settings = with_images_of(host, tmp_path)
    with serve(settings, Stub(settings)) as client:
        lines = [line(f"{number}", body={"input_reference": f"{host.address}/cat.png"}) for number in range(9)]
        began = runner.time.monotonic()
        done = ended(client, start(client, jsonl(*lines, line("with its image"))))
        assert 2 <= runner.time.monotonic() - began < 9 * 2
        assert done["request_counts"] == {"total": 10, "completed": 1, "failed": 9}
        errors = client.get(f"/v1/files/{done['error_file_id']}/content").text.splitlines()
        assert {json.loads(one)["response"]["body"]["error"]["code"] for one in errors} == {"image_away"}


def test_lines_wait_while_the_machine_kills_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = tmp_path / "deaths"
    deaths.touch()
    monkeypatch.setattr(uploads, "size_of", functools.partial(size_or_death, str(deaths)))
    settings = ServeSettings(output=str(tmp_path), page=False)
    with serve(settings, Stub(settings)) as client:
        refused = send(client)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "decoder_away")
        assert deaths.stat().st_size == 2
        batch_id = start(client, jsonl(line("one"), line("two")))
        until(lambda: deaths.stat().st_size > 3)
        deaths.unlink()
        assert ended(client, batch_id)["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
