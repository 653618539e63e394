"""A batch goes on after faults: a storage that is away while it is cancelled."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.batch import runner
from pipelines.serving.batch.batches import Batches
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.batch_client import ended, jsonl, line, start, until
from tests.pipelines.serving.in_process import Stub, serve


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
