"""The service with a long queue: seconds to renew a lease, and to answer POST /v1/videos.

    python benchmarks/serve_scale.py [--jobs 100000] [--posts 400] [--store postgresql://...]

Jobs wait in PostgreSQL (by default a server of its own, in a temporary folder), watched by two ingress processes whose
replicas are stubs that never finish. Both first take these jobs over, as after a restart. Exits 1 when a renewal takes
1 s or more, or POST 100 ms or more at the 99th percentile.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from timing import Ratio, report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cinemo.garbage import exempt_from_collections
from pipelines.serving.api import create_app
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.metrics import Metrics
from pipelines.serving.served_models import look_up
from pipelines.serving.service import Service
from pipelines.serving.settings import Limits, ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.conftest import Postgres, free_port
from tests.pipelines.serving.in_process import png

MOST_RENEWAL_S, MOST_POST_S = 1.0, 0.1
COPY = """
WITH first AS (
  INSERT INTO cinemo_images_1 (id, image)
  SELECT 'video_' || md5(number::text), image FROM cinemo_images_1, generate_series(1, :jobs) AS number
)
INSERT INTO cinemo_jobs_2 (id, owner, model, status, progress, request, attempt, keeper, lease_until, created_at)
SELECT 'video_' || md5(number::text), 'owner' || number % 100, model, 'queued', 0, request, 0, 'gone', 0,
created_at + number / 1e6 FROM cinemo_jobs_2, generate_series(1, :jobs) AS number
"""


def serve(settings: ServeSettings, port: int, renewals: Any) -> None:
    """Run an ingress on a port. renewals: list to which the seconds of each renewal of its lease are added."""
    import uvicorn

    async def animate(job_id: str, shape: str) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def ready() -> list[str]:
        return []

    store, name = Store(settings.store_url), "builtin:tiny"
    renew = store.renew

    def timed(lease_owner: str, lease_s: float) -> None:
        began = time.perf_counter()
        renew(lease_owner, lease_s)
        renewals.append(time.perf_counter() - began)

    store.renew = timed  # type: ignore[method-assign]
    dispatcher = Dispatcher(settings, store, {name: animate})
    service = Service(settings, store, dispatcher, {name: look_up(name, name)})
    exempt_from_collections()
    uvicorn.run(create_app(service, Metrics(), ready), port=port, log_level="error")


def post(client: httpx.Client, image: bytes) -> float:
    """Send a request for a video; returns its seconds."""
    began = time.perf_counter()
    client.post("/v1/videos", data={"prompt": "it moves"}, files={"input_reference": image}).raise_for_status()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--posts", type=int, default=400)
    parser.add_argument("--store", help="URL of an empty database; default: on a server of its own")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        server = None if options.store else Postgres(Path(folder, "postgres"))
        try:
            return measure(options, folder, options.store or server.new_database())  # type: ignore[union-attr]
        finally:
            if server is not None:
                server.kill()


def measure(options: argparse.Namespace, folder: str, store: str) -> int:
    settings = ServeSettings(output=folder, store=store, limits=Limits(max_queue=10_000_000))
    context = multiprocessing.get_context("spawn")
    renewals, ports = context.Manager().list(), [free_port(), free_port()]
    ingresses = [context.Process(target=serve, args=(settings, port, renewals), daemon=True) for port in ports]
    engine, posts = Store(settings.store_url).database.engine, list[float]()
    try:
        for ingress in ingresses:
            ingress.start()
        for port in ports:
            wait_until(lambda port=port: answers(port))
        clients = [httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) for port in ports]
        image = png((192, 128))
        post(clients[0], image)
        with engine.begin() as connection:
            connection.execute(sa.text(COPY), {"jobs": options.jobs})
        began = time.monotonic()
        left = sa.text("SELECT count(*) FROM cinemo_jobs_2 WHERE keeper = 'gone'")
        wait_until(lambda: not scalar(engine, left))
        take_over = time.monotonic() - began
        with ThreadPoolExecutor(2) as threads:  # one for each ingress
            posts = [*threads.map(post, [*clients] * (options.posts // 2), repeat(image))]
    finally:
        for ingress in ingresses:
            ingress.terminate()
    posts.sort()
    p99 = posts[int(len(posts) * 0.99)]
    spread = Ratio(p99 / MOST_POST_S, posts[0] / MOST_POST_S, posts[-1] / MOST_POST_S)
    facts = {"median_post_ms": 1e3 * statistics.median(posts), "p99_post_ms": 1e3 * p99}
    facts |= {"longest_renewal_s": max(renewals), "renewals": len(renewals), "take_over_s": take_over}
    passed = p99 < MOST_POST_S and max(renewals) < MOST_RENEWAL_S
    return report(f"99th percentile of POST with {options.jobs} queued jobs, against 100 ms", spread, passed, **facts)


def scalar(engine: sa.Engine, query: sa.TextClause) -> Any:
    with engine.connect() as connection:
        return connection.scalar(query)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live").is_success
    except httpx.TransportError:
        return False


def wait_until(happened: Any, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
