"""Training at scale: opening ten million clips, and object storage with latency.

    python benchmarks/train_scale.py [open] [storage]

open: an index of 1 and 10 million clips is fabricated, and opened by two processes at once. storage: clips of the
paper's size in an S3 server on localhost, 50 ms before every request; a step is a sleep of 1 s. Takes two minutes.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import logging
import multiprocessing
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from timing import Ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MILLIONS, SHARE = (1, 10), 0.05
OPEN_S, OPEN_MB, GROWTH, WAIT = 5.0, 200.0, 1.5, 0.02
PAPER = (16, 4, 40, 64)  # shape of a clip's latents


def fabricate(folder: Path, clips: int) -> None:
    """Write an index of as many clips, which lie in random order in files of 500."""
    from pipelines.dataset import index

    draw = np.random.default_rng(0)
    words = np.sort(draw.integers(0, 2**64, clips, np.uint64)).astype(">u8")
    ids = np.concatenate([words[:, None].view(np.uint8), draw.integers(0, 256, (clips, 8), np.uint8)], axis=1)
    order = draw.permutation(clips).astype(np.int32)
    place = np.stack([order // 500, order % 500 // 2, order % 2], axis=1)
    names = [f"part-{number:032x}.parquet".encode() for number in range(-(-clips // 500))]
    split = draw.integers(0, index.SPLIT, clips, np.uint32)
    columns = (ids, place, draw.integers(0, 20, clips, np.uint8), split, np.array(names), np.full(len(names), 1 << 28))
    folder.mkdir()
    for name, column in zip(index.Index._fields[:-1], columns, strict=True):  # all clips have one shape
        np.save(folder / f"{name}.npy", column)


def open_index(folder: str) -> None:
    """As a worker: open the index, find the clips of a first step, read every row; print seconds and megabytes."""
    from pipelines.dataset.reader import ClipReader

    before = anonymous_mb()
    began = time.perf_counter()
    clips = ClipReader("unused", SHARE, folder)
    opened = time.perf_counter()
    positions = clips.positions(80, 0, 0)
    assert clips.index.place[[clips.order.row(position) for position in positions]].shape == (80, 3)
    ready, cpu = time.perf_counter(), time.process_time()
    assert all(int(column[:: 4096 // column.itemsize].sum()) >= 0 for column in clips.index[:4])  # touches all pages
    found = {"open": opened - began, "order": ready - opened, "private_mb": anonymous_mb() - before, "cpu": cpu}
    print(json.dumps({**found, "mapped_mb": sum(c.nbytes for c in clips.index if c is not None) / 1e6}), flush=True)
    sys.stdin.read()  # the other worker maps the same pages meanwhile


def anonymous_mb() -> float:
    """Memory of this process that no file backs, in MB: what it shares with no other process that maps the files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024 / 1e6


def opening() -> int:
    """Time and private memory of two workers that open an index."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for millions in MILLIONS:
            place = Path(folder) / str(millions)
            fabricate(place, millions * 1_000_000)
            command = [sys.executable, __file__, "--open", str(place)]
            runs = []
            for _ in range(3):
                workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
                lines = [json.loads(worker.stdout.readline()) for worker in workers if worker.stdout]
                runs.append({name: max(line[name] for line in lines) for name in lines[0]})
                for worker in workers:
                    worker.communicate()
            found[millions] = {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
    small, large = (found[millions] for millions in MILLIONS)
    seconds = large["open"] + large["order"]
    growth = large["cpu"] / small["cpu"]
    facts = {"seconds": seconds, "of_these_order_of_an_epoch": large["order"], "private_mb": large["private_mb"]}
    facts |= {"mapped_mb": large["mapped_mb"], "seconds_of_1_million": small["open"] + small["order"]}
    passed = seconds <= OPEN_S and large["private_mb"] <= OPEN_MB
    first = report("opening 10 million clips: 5 s against it", flat(OPEN_S / seconds), passed, **facts)
    facts = {"cpu_seconds": large["cpu"], "cpu_seconds_of_1_million": small["cpu"]}
    what = "CPU seconds of a process that opens 10 million clips, imports included, against 1 million"
    return max(first, report(what, flat(growth), growth <= GROWTH, bound=GROWTH, **facts))


def flat(value: float) -> Ratio:
    """A ratio that was measured once."""
    return Ratio(value, value, value)


def make_dataset(folder: Path, clips: int, shape: tuple[int, ...], per_file: int = 8) -> dict[str, Any]:
    """Write a dataset of random latents, its index included; returns its description."""
    from pipelines.core import storage
    from pipelines.dataset import index, parts
    from pipelines.prepare import flow
    from pipelines.prepare.config import ExtractConfig

    draw = np.random.default_rng(1)
    for first in range(0, clips, per_file):
        rows = []
        for number in range(first, min(clips, first + per_file)):
            row = {"uri": f"s3://videos/{number}.mp4", "caption": f"caption {number % 40}", "start_frame": 0}
            row |= {"clip_id": str(uuid.UUID(bytes=draw.bytes(16))), "interval": 3, "fps": 25.0, "score": 0.9}
            row |= {"bucket": number % 20, "latents": draw.standard_normal(shape).astype(np.float16).tobytes()}
            rows.append({**row, "latents_shape": list(shape), "reason": None, "segment": None})
            rows[-1] |= {"num_frames": shape[0], "height": shape[2] * 8, "width": shape[3] * 8}
        parts.write(rows, str(folder))
    described = {"input": "random", **flow.identity(ExtractConfig.model_validate({}))}
    described |= {"counts": {"clips": clips}, "fingerprint": f"random-{clips}-{shape}", "bucket_weights": None}
    index.update(str(folder), described)
    storage.put_json(f"{folder}/dataset.json", described)
    return described


def serve(connection: Any, delay: float, part: str) -> None:
    """Run an S3 server until it gets the message "stop"; to any other message it sends the seconds waited so far.

    It waits `delay` seconds before each request whose path contains `part`.
    """
    from moto.server import ThreadedMotoServer

    from tests.pipelines.outage import Outage

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = Outage("http://{}:{}".format(*server.get_host_and_port()))
    waits = []

    def wait(method: str, path: str) -> float:
        waits.append(delay if part in path else 0.0)
        return waits[-1]

    proxy.delay = wait
    connection.send(proxy.address)
    while connection.recv() != "stop":
        connection.send(sum(waits))


@contextmanager
def slow_storage(delay: float = 0.05, part: str = "") -> Iterator[Any]:
    """Run such a server in a process of its own; it is S3 for this process and those that it starts.

    delay, part: as in `serve`. Yields a connection to that process.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, delay, part))
    process.start()
    os.environ |= {"AWS_ENDPOINT_URL": ours.recv(), "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "of-the-benchmark")
    try:
        import fsspec

        fsspec.filesystem("s3").mkdir("scale")
        yield ours
    finally:
        ours.send("stop")
        process.join()


def waiting(dataset: str, index_uri: str, ahead: int, steps: int = 20) -> float:
    """Share of steps of 1 s that waits for their eight clips and the inputs drawn of them."""
    import torch

    from cinemo import checkpoint
    from cinemo.motion import UNIFORM_MOTION
    from pipelines.dataset.reader import ClipReader
    from pipelines.train.batch import draw_batch, text_features
    from pipelines.train.config import TrainConfig
    from pipelines.train.prefetch import Prefetch

    config = TrainConfig(dataset=dataset, output="unused", total_batch=8, micro_batch=8)
    embed = text_features(checkpoint.resolve("builtin:tiny"), torch.device("cpu"))
    clips = ClipReader(dataset, 0.0, index_uri)
    plan = ((step, clips.positions(8, 0, step)) for step in range(steps))
    batches = Prefetch(
        plan, clips.__getitem__, lambda step, batch: draw_batch(config, step, batch, embed, UNIFORM_MOTION, 1000), ahead
    )
    next(batches)  # the first step of a run waits, and counts as its start
    waits = []
    for _ in range(steps - 1):
        time.sleep(1.0)
        began = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - began)
    batches.close()
    print(f"seconds waited with {ahead} steps ahead:", *(f"{seconds:.3f}" for seconds in waits), flush=True)
    return sum(waits) / (sum(waits) + steps - 1)


def storage_share() -> int:
    """Share of a step that waits for data in object storage, with and without prefetch."""
    import fsspec

    from pipelines.dataset import index

    with tempfile.TemporaryDirectory() as folder, slow_storage():
        os.environ["CINEMO_CACHE"] = f"{folder}/cache"
        described = make_dataset(Path(folder) / "ds", 200, PAPER)
        fsspec.filesystem("s3").put(f"{folder}/ds", "scale/ds", recursive=True)
        place = index.find("s3://scale/ds", described, "unused", print)
        shares = {ahead: waiting("s3://scale/ds", place, ahead) for ahead in (2, 0)}
    facts = {"without_prefetch": shares[0], "bound": WAIT}
    return report("share of a step that waits for object storage", flat(shares[2]), shares[2] <= WAIT, **facts)


PARTS = {"open": opening, "storage": storage_share}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.open:
        open_index(options.open)
        return 0
    return max(PARTS[part]() for part in options.parts or PARTS)


if __name__ == "__main__":
    sys.exit(main())
