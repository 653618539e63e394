"""The service against a direct call of the pipeline, and the time to accept a video while it is busy.

    python benchmarks/serve.py [--repeats 5] [--steps 30]

The built-in model on Ray Serve, one replica and one thread, as `serve run` starts it; the direct call has one thread
too. Exits 1 when a video by POST /v1/videos/sync takes more than 1.05 times the direct call plus 100 ms, or when
POST /v1/videos takes 50 ms or more at the median while the replica is busy. Takes about three minutes on two cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import io
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import skimage.data
import torch
from PIL import Image
from timing import compare, ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FACTOR, MOST_MORE_S, MOST_POST_S = 1.05, 0.1, 0.05
POSTS = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.chelsea()).save(buffer, "PNG")
    settings = {"prompt": "the camera pans left", "seed": 1, "num_inference_steps": options.steps}
    with started_service() as client:
        seconds = time_videos(client, buffer.getvalue(), settings, options.repeats)
        posts = time_posts(client, buffer.getvalue(), settings)
    more = statistics.median(a - FACTOR * b for a, b in zip(seconds["service"], seconds["direct"], strict=True))
    median = statistics.median(posts)
    against = ratio(seconds["service"], seconds["direct"])
    facts = {"direct_seconds": statistics.median(seconds["direct"]), "seconds_over_the_factor": more}
    share = ratio(posts, [MOST_POST_S] * POSTS)
    return max(
        report("sync request against a direct call", against, more <= MOST_MORE_S, **facts, bound=MOST_MORE_S),
        report("POST while busy against 50 ms", share, median < MOST_POST_S, median_milliseconds=1000 * median),
    )


@contextlib.contextmanager
def started_service() -> Iterator[httpx.Client]:
    """Run the service with the built-in model on a Ray cluster of its own; yields an HTTP client."""
    from ray import serve

    from pipelines.serving.deploy import build
    from pipelines.serving.settings import ServeSettings
    from ray_jobs import common

    with tempfile.TemporaryDirectory() as folder:
        common.connect(2, verbose=False)
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(ServeSettings(output=folder, page=False)), name="cinemo")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            yield client
        serve.shutdown()
        common.disconnect()


def post(client: httpx.Client, url: str, photo: bytes, settings: dict[str, Any]) -> httpx.Response:
    """Request a video. Raises httpx.HTTPStatusError."""
    return client.post(url, data=settings, files={"input_reference": photo}).raise_for_status()


def time_videos(client: httpx.Client, photo: bytes, settings: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Measure the seconds of videos by the service and by direct calls of the pipeline, side by side."""
    from cinemo import CinemoPipeline

    pipe = CinemoPipeline.from_pretrained("builtin:tiny")
    pipe.set_progress_bar_config(disable=True)
    guidance = pipe.card.guidance
    return compare(
        {
            "service": lambda: post(client, "/v1/videos/sync", photo, settings),
            "direct": lambda: pipe(photo, **settings, guidance_scale=guidance),
        },
        repeats,
    )


def time_posts(client: httpx.Client, photo: bytes, settings: dict[str, Any]) -> list[float]:
    """Measure the seconds of each of POSTS requests while the replica makes a long video; exits if it ends first."""
    long = post(client, "/v1/videos", photo, settings | {"num_inference_steps": 100}).json()["id"]

    def status() -> str:
        return str(client.get(f"/v1/videos/{long}").json()["status"])

    while status() != "in_progress":
        time.sleep(0.1)
    taken = []
    for _ in range(POSTS):
        began = time.perf_counter()
        video = post(client, "/v1/videos", photo, settings).json()["id"]
        taken.append(time.perf_counter() - began)
        client.delete(f"/v1/videos/{video}").raise_for_status()
    if status() != "in_progress":
        sys.exit("the replica finished before all POST requests were sent; raise num_inference_steps of the long video")
    return taken


def free_port() -> int:
    """Find an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
