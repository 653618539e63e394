"""Large batches: the output is written in parts, and stored whole or not at all; files are read in few threads."""

import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipelines.core import storage
from pipelines.serving.batch import runner
from pipelines.serving.batch.batches import Batches, Line
from pipelines.serving.batch.files import Files, place_of
from pipelines.serving.batch.runner import Run, Runner, read_spans
from pipelines.serving.jobs import tables
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.batch_client import jsonl, line, start, until
from tests.pipelines.serving.in_process import Stub, serve

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
    work = Runner(settings, store, files, batches, "one", send, lambda owner: 1)  # type: ignore[arg-type]
    ((batch, owner),) = batches.take("one", 60)
    run, put = Run(work, batch, owner), storage.put_file
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


def test_requests_are_answered_while_many_batches_read_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives an ingress five threads, and all of them read files: every other request waited."""
    settings, over, reads = ServeSettings(output=str(tmp_path), page=False), threading.Event(), list[Any]()

    def slowly(*arguments: Any) -> Any:
        reads.append(arguments)
        over.wait(20)
        return read_spans(*arguments)

    monkeypatch.setattr(runner, "read_spans", slowly)
    monkeypatch.setattr(runner, "POLL_S", 0.05)
    with serve(settings, Stub(settings)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        began = time.monotonic()
        for _ in range(8):
            start(client, jsonl(line("one")))
        until(lambda: len(service.runner.tasks) == 8 and reads)
        assert client.get("/v1/videos").json()["data"] == []
        assert time.monotonic() < began + 15
        over.set()


def test_requests_in_a_bucket_are_read(bucket: Any) -> None:
    bucket.pipe("videos/requests.jsonl", jsonl(line("one"), line("two")))
    assert len(read_spans("s3://videos/requests.jsonl", 10, 100_000)[0]) == 2


def test_a_line_that_is_too_long_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_bytes(jsonl(line("one")) + b"x" * (32 << 20))
    tracemalloc.start()
    try:
        spans, (problem,) = read_spans(str(file), 10, 100_000)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert (len(spans), problem["line"], problem["message"]) == (2, 2, "the line has more than 100,000 bytes")
