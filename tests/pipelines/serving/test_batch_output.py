"""The output of a large batch is written in parts, and is stored whole or not at all."""

import tracemalloc
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines.core import storage
from pipelines.serving.batch.batches import Batches, Line
from pipelines.serving.batch.files import Files, place_of
from pipelines.serving.batch.runner import Run, Runner
from pipelines.serving.jobs import tables
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store

LINES, BYTES = 6000, 6000  # 36 MB


async def send(*_: object) -> None:
    raise AssertionError("all lines have ended")


def test_the_output_of_a_large_batch_takes_little_memory_and_appears_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServeSettings(output=str(tmp_path), page=False)
    store = Store(settings.store_url)
    files, batches = Files(settings, store.database), Batches(settings, store.database)
    batches.create("batch_1", "me", "file_1", None)
    with store.database.transaction() as connection:
        for first in range(0, LINES, 500):
            rows = [{"batch": "batch_1", "number": number, "job": f"video_{number}", "ok": number % 3 < 2,
                     "outcome": f"{number} ".ljust(BYTES, "x")} for number in range(first, first + 500)]  # fmt: skip
            connection.execute(tables.lines.insert(), rows)
        connection.execute(tables.lines.insert().values(batch="batch_1", number=LINES, job="video", ok=0))  # not ended
    runner = Runner(settings, store, files, batches, "one", send, lambda owner: 1)  # type: ignore[arg-type]
    ((batch, owner),) = batches.take("one", 60)
    run, put = Run(runner, batch, owner), storage.put_file
    run.spans = [(0, 1)]
    tracemalloc.start()
    try:
        run._load()
        before = (run.completed, run.failed, list(run.open), run.unsent)
        assert before == (LINES * 2 // 3, LINES // 3, ["video"], [])
        monkeypatch.setattr(storage, "put_file", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(Exception, match="storage"):
            run._write("completed")
        assert not list((tmp_path / "files").glob("*"))
        monkeypatch.setattr(storage, "put_file", put)
        run._write("completed")
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()
    (done,), _ = batches.page("me", None, 1)
    for file_id, kind in ((done.output_file_id, 1), (done.error_file_id, 0)):
        assert file_id is not None
        with open(place_of(settings, file_id)) as file:
            numbers = [int(line.split()[0]) for line in file]
        assert numbers == [number for number in range(LINES) if (number % 3 < 2) == kind]
        assert files.find(file_id, "me").bytes == len(numbers) * (BYTES + 1)
    assert len(list((tmp_path / "files").iterdir())) == 2
    with pytest.raises(RuntimeError, match="another process has ended batch_1"):  # by a thread that lost the batch
        batches.record("batch_1", Line(0, "video", "{}", 1))
    assert not store.database.all(sa.select(tables.lines))
