"""The service under load: turns of API keys, POST beside event streams and pollers, and what deleted videos leave.

    python benchmarks/serve_load.py [fair] [streams] [disk] [--videos 100] [--posts 300] [--seconds 10] [--store URL]

Replicas are stubs, so that the service alone is measured. `fair`: one key has 500 jobs waiting for one replica, and
each of 19 other keys sends one; exits 1 when more than two jobs begin between sending and beginning one of these.
`streams`: 50 clients read events and 200 poll a video every second, all from one ingress with PostgreSQL; exits 1 when
POST takes 200 ms or more at the 99th percentile. `disk`: videos are written to an S3 server (moto), downloaded and
deleted; exits 1 when bucket and local disk have more bytes than before, or the database still has rows of the videos.
"""

import argparse
import asyncio
import itertools
import logging
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa
from timing import Ratio, report
from train_scale import slow_storage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cinemo.garbage import exempt_from_collections
from pipelines.serving.jobs import tables
from pipelines.serving.settings import Limits, ServeSettings
from pipelines.serving.store import Store
from pipelines.serving.videos import results
from tests.pipelines.serving.conftest import Postgres, free_port
from tests.pipelines.serving.in_process import Stub, application, listening, png

KEYS = [f"key-{number}" for number in range(20)]
WAITING, JOB_S, MOST_WAIT = 500, 0.5, 2  # jobs of the first key, seconds of each, jobs before another key's
STREAMS, POLLERS, MOST_POST_S = 50, 200, 0.2
LIMITS = Limits(max_queue=5000, max_queue_per_key=5000)


class Replica(Stub):
    """A replica that makes one video at a time, in JOB_S seconds, once `opened` is set."""

    def __init__(self, settings: ServeSettings) -> None:
        super().__init__(settings)
        self.opened, self.begun_at = threading.Event(), dict[str, float]()

    async def animate(self, job_id: str, shape: str) -> dict[str, Any]:
        async with self.one:
            while not self.opened.is_set():
                await asyncio.sleep(0.02)
            found = await asyncio.to_thread(self.store.claim, job_id, "stub", 60, alone=True)
            if found is not None:
                self.begun_at[job_id] = time.monotonic()
                await asyncio.sleep(JOB_S)
                await asyncio.to_thread(self.end, found[0])
        return {}


def post(client: httpx.Client, key: str = "", **fields: Any) -> str:
    """Send a request for a video; returns its id."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data, files = {"prompt": "it moves", **fields}, {"input_reference": IMAGE}
    return str(client.post("/v1/videos", data=data, files=files, headers=headers).raise_for_status().json()["id"])


IMAGE = png((192, 128))


def fair(options: argparse.Namespace, folder: Path) -> int:
    """Measure how long 19 keys' single jobs wait while another key has many."""
    settings = ServeSettings(output=str(folder), page=False, limits=LIMITS)
    replica, waits, before = Replica(settings), list[float](), list[int]()
    os.environ["CINEMO_API_KEYS"] = ",".join(KEYS)
    with listening(application(settings, replica)) as address, httpx.Client(base_url=address, timeout=60) as client:
        for _ in range(WAITING):
            post(client, KEYS[0])
        replica.opened.set()
        for key in KEYS[1:]:
            time.sleep(random.uniform(0, 3 * JOB_S))
            job_id = post(client, key)
            sent_at = time.monotonic()
            wait_until(lambda job_id=job_id: job_id in replica.begun_at)
            waits.append(replica.begun_at[job_id] - sent_at)
            before.append(sum(sent_at < at < replica.begun_at[job_id] for at in replica.begun_at.values()))
    del os.environ["CINEMO_API_KEYS"]
    begun = sorted(replica.begun_at.values())
    seconds = statistics.median(np.diff(begun))
    of_jobs = [wait / seconds for wait in waits]
    spread = Ratio(max(of_jobs) / MOST_WAIT, min(of_jobs) / MOST_WAIT, max(of_jobs) / MOST_WAIT)
    facts = {"longest_wait_jobs": max(of_jobs), "jobs_before_it": max(before), "job_seconds": seconds}
    name = f"longest wait of 19 keys' single jobs beside a key with {WAITING}, against two jobs' time"
    return report(name, spread, max(before) <= MOST_WAIT, **facts)


def serve(settings: ServeSettings, port: int, statements: Any) -> None:
    """Run an ingress, whose jobs never end, on a port. statements: shared counter of its SQL statements."""
    import uvicorn

    class Hanging(Stub):
        async def animate(self, job_id: str, shape: str) -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

    def count(*_: Any) -> None:
        statements.value += 1

    app = application(settings, Hanging(settings))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    exempt_from_collections()
    sa.event.listen(app.state.service.store.database.engine, "before_cursor_execute", count)
    uvicorn.run(app, port=port, log_level="error")


def load(address: str, ids: list[str], may_poll: Any, busy: Any) -> None:
    """Read the events of each job, for ever; and let each poller request a job every second, once `may_poll` is 1.

    may_poll, busy: shared integers. busy: number of streams and pollers that have got their first answer.
    """
    import aiohttp

    async def read(session: aiohttp.ClientSession, job_id: str) -> None:
        async with session.get(f"{address}/v1/videos/{job_id}/events") as answer:
            await answer.content.readline()
            busy.value += 1
            async for _ in answer.content:
                pass

    async def poll(session: aiohttp.ClientSession, number: int) -> None:
        await asyncio.sleep(number / POLLERS)
        for turn in itertools.count():
            async with session.get(f"{address}/v1/videos/{ids[number % len(ids)]}") as answer:
                await answer.read()
            busy.value += turn == 0
            await asyncio.sleep(1)

    async def both() -> None:
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            streams = [asyncio.create_task(read(session, job_id)) for job_id in ids]
            while not may_poll.value:
                await asyncio.sleep(0.1)
            await asyncio.gather(*streams, *(poll(session, number) for number in range(POLLERS)))

    asyncio.run(both())


def streams(options: argparse.Namespace, folder: Path) -> int:
    """Measure POST, and the SQL statements a second, beside event streams and pollers."""
    server, context = None if options.store else Postgres(folder / "postgres"), multiprocessing.get_context("spawn")
    store = options.store or server.new_database()  # type: ignore[union-attr]
    settings = ServeSettings(output=str(folder / "out"), store=store, page=False, limits=LIMITS)
    port, statements, may_poll, busy = free_port(), *(context.Value("q", 0) for _ in range(3))
    address, taken, over = f"http://127.0.0.1:{port}", list[float](), threading.Event()
    ingress = context.Process(target=serve, args=(settings, port, statements), daemon=True)
    clients = steps = None
    try:
        ingress.start()
        wait_until(lambda: answers(address))
        with httpx.Client(base_url=address, timeout=60) as client:
            ids = [post(client) for _ in range(STREAMS)]
            steps = threading.Thread(target=advance, args=(settings, ids, over))
            idle = rate(statements, options.seconds)
            clients = context.Process(target=load, args=(address, ids, may_poll, busy), daemon=True)
            clients.start()
            steps.start()
            wait_until(lambda: busy.value == STREAMS)
            of_streams = rate(statements, options.seconds)
            may_poll.value = 1
            wait_until(lambda: busy.value == STREAMS + POLLERS)
            of_all = rate(statements, options.seconds)
            for _ in range(options.posts):
                began = time.perf_counter()
                post(client)
                taken.append(time.perf_counter() - began)
    finally:
        over.set()
        for process in (ingress, clients):
            if process is not None:
                process.kill()  # terminate() would let the ingress wait for its event streams to end
                process.join()
        if steps is not None and steps.ident is not None:
            steps.join()
        if server is not None:
            server.kill()
    taken.sort()
    p99 = taken[int(len(taken) * 0.99)]
    facts = {"median_post_ms": 1e3 * statistics.median(taken), "p99_post_ms": 1e3 * p99}
    facts |= {"statements_per_second_idle": idle, "with_streams": of_streams, "with_pollers": of_all}
    spread = Ratio(p99 / MOST_POST_S, taken[0] / MOST_POST_S, taken[-1] / MOST_POST_S)
    name = f"99th percentile of POST beside {STREAMS} event streams and {POLLERS} pollers, against 200 ms"
    return report(name, spread, p99 < MOST_POST_S, **facts)


def advance(settings: ServeSettings, ids: Sequence[str], over: threading.Event) -> None:
    """Report steps of all jobs, as their replicas would, until `over` is set."""
    store = Store(settings.store_url)
    for job_id in ids:
        store.claim(job_id, "stub", 3600, alone=True)
    for step in itertools.count():
        if over.wait(1 / len(ids)):
            return
        store.advance(ids[step % len(ids)], 1, step // len(ids) % 100, 3600)


def rate(counter: Any, seconds: float) -> float:
    """Count the increments of a shared counter for so many seconds; returns increments per second."""
    before, began = counter.value, time.perf_counter()
    time.sleep(seconds)
    return float((counter.value - before) / (time.perf_counter() - began))


class Writer(Stub):
    """A replica that writes the files of a small video."""

    def end(self, job: Any) -> None:
        frames = np.zeros((4, 64, 96, 3), np.uint8)
        _, files = results.encode(frames, {"request": job.request})
        results.write(f"{self.settings.place}/videos", job.id, job.attempt, files)
        super().end(job)


def disk(options: argparse.Namespace, folder: Path) -> int:
    """Measure what is left of videos that were made, downloaded from a bucket and deleted."""
    with slow_storage(delay=0):
        return made_and_deleted(options, folder)


def made_and_deleted(options: argparse.Namespace, folder: Path) -> int:
    """Make, download and delete videos one after another, and compare what bucket, disk and database hold."""
    import boto3

    bucket, local, database = boto3.resource("s3").create_bucket(Bucket="videos"), folder / "tmp", folder / "jobs.db"
    local.mkdir()
    tempfile.tempdir = str(local)  # the service's copies, too
    settings = ServeSettings(output="s3://videos/made", store=f"sqlite:///{database}", page=False, limits=LIMITS)

    def sizes() -> tuple[int, int]:
        kept = (item.size for item in bucket.objects.all() if not item.key.endswith("/"))
        return sum(kept), sum(path.stat().st_size for path in local.rglob("*") if path.is_file())

    try:
        app = application(settings, Writer(settings))
        with listening(app) as address, httpx.Client(base_url=address, timeout=60) as client:
            before, most = sizes(), (0, 0)
            for number in range(options.videos):
                job_id = post(client)
                while client.get(f"/v1/videos/{job_id}").json()["status"] != "completed":
                    time.sleep(0.1)
                client.get(f"/v1/videos/{job_id}/content").raise_for_status()
                most = max(most, sizes()) if number % 10 == 0 else most
                client.delete(f"/v1/videos/{job_id}").raise_for_status()
            after = sizes()
    finally:
        tempfile.tempdir = None
    left = sum(after) - sum(before)
    facts = {"bytes_of_one": sum(most) - sum(before), "bytes_left": left}
    facts |= {"rows_left": rows(settings), "tombstones": options.videos}
    ratio = left / max(1, sum(most) - sum(before))
    name = f"bytes left of {options.videos} videos made, downloaded and deleted, against those of one"
    return report(name, Ratio(ratio, ratio, ratio), not left and not facts["rows_left"] and min(most) > 0, **facts)


def rows(settings: ServeSettings) -> int:
    """Count the rows of jobs, images, events and files in the database; tombstones, kept for 30 days, do not count."""
    database = Store(settings.store_url).database
    counted = (tables.jobs, tables.images, tables.events, tables.files)
    return sum(database.first(sa.select(sa.func.count()).select_from(table))[0] for table in counted)


def answers(address: str) -> bool:
    """Whether an ingress answers at an address."""
    try:
        return httpx.get(f"{address}/health/live").is_success
    except httpx.TransportError:
        return False


def wait_until(happened: Callable[[], Any], seconds: float = 300) -> None:
    """Wait until a function returns something true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


MEASURED = {"fair": fair, "streams": streams, "disk": disk}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("only", nargs="*", choices=[[], *MEASURED], help="what to measure; default: all")
    parser.add_argument("--videos", type=int, default=100, help="for disk")
    parser.add_argument("--posts", type=int, default=300, help="for streams")
    parser.add_argument("--seconds", type=float, default=10, help="for which statements are counted")
    parser.add_argument("--store", help="for streams: URL of an empty database; default: a PostgreSQL of its own")
    options = parser.parse_args(arguments)
    for name in ("ray.serve", "werkzeug"):
        logging.getLogger(name).setLevel(logging.WARNING)
    code = 0
    for name in options.only or MEASURED:
        with tempfile.TemporaryDirectory() as folder:
            code |= MEASURED[name](options, Path(folder))
    return code


if __name__ == "__main__":
    sys.exit(main())
