"""The prepare job against a plain loop of the same steps in one process and one thread: how many times faster.

    python benchmarks/prepare.py [--videos 200] [--repeats 2]

Same videos, same functions, same rows out. The job runs on as many cores as there are, and once more on one core; its
start-up, which is the time that it takes for VIDEOS_AT_START videos, is subtracted and printed. The loop's imports and
its model's loading are not timed either. Exits 1 when the job is not 1.6 times as fast on two cores, or 0.85 times on
one. Takes about four minutes on two cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import Ratio, ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUND_ALL, BOUND_ONE = 1.6, 0.85
DIFFERENT = 8  # videos that are encoded; the rest are copies under other names, so drawn otherwise
VIDEOS_AT_START = 8
SAMPLING = {"num_frames": 16, "height": 64, "width": 96}


def make_videos(folder: Path, count: int) -> Path:
    """`count` files of 360 x 640, 8 seconds each."""
    from cinemo.video import write_video

    folder.mkdir()
    for number in range(min(count, DIFFERENT)):
        generator = np.random.default_rng(number)
        picture = np.kron(generator.integers(0, 255, (45, 80, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        shift = 1 + number % 4
        write_video(folder / f"{number:04}.mp4", np.stack([np.roll(picture, shift * k, 1) for k in range(200)]), fps=25)
    for number in range(DIFFERENT, count):
        shutil.copy(folder / f"{number % DIFFERENT:04}.mp4", folder / f"{number:04}.mp4")
    return folder


def plain_loop(videos: Path, output: Path) -> float:
    """Seconds of one thread for all videos: probe, draw, decode, score, encode, write parts of 32."""
    from pipelines import clips, extract, parts, prepare, sources

    config = prepare.PrepareConfig(input=str(videos), output=str(output), **SAMPLING)
    size = extract.frame_size(config)
    encoder = clips.Encoder(config.model, config.num_frames, size, False, False, "cpu")
    clips.warm_up()
    began = time.perf_counter()
    rows: list[clips.Row] = []
    for table in sources.iter_videos(config.input):
        for video in table.to_pylist():
            for span in clips.make_spans(video, config, size):
                row = clips.decode({"reason": None, **span}, config, size)
                rows.append(row if row["reason"] else encoder.encode(row))
                if len(rows) == config.clips_per_file:
                    parts.write(rows, config.output, config.num_frames, size)
                    rows = []
    if rows:
        parts.write(rows, config.output, config.num_frames, size)
    return time.perf_counter() - began


def start_job(videos: Path, output: Path, cores: set[int] | None = None) -> "subprocess.Popen[str]":
    """Start the command, on some cores or on all."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in SAMPLING.items()]
    command = [sys.executable, str(ROOT / "ray_jobs" / "prepare.py"), f"--input={videos}", f"--output={output}"]
    return subprocess.Popen(
        [*command, *arguments],
        env={key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores or os.sched_getaffinity(0)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def job(videos: Path, output: Path, cores: set[int]) -> float:
    """Seconds of the whole command."""
    began = time.perf_counter()
    running = start_job(videos, output, cores)
    _, errors = running.communicate()
    if running.returncode:
        sys.exit(f"the job failed with {running.returncode}: {errors}")
    return time.perf_counter() - began


def rows_of(output: Path) -> list[Any]:
    import pyarrow.parquet as pq

    table = pq.read_table(output / "data").sort_by("clip_id")
    return [table[name].to_pylist() for name in ("clip_id", "score", "bucket", "latents")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args(arguments)
    every = os.sched_getaffinity(0)
    one = {min(every)}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        many = make_videos(place / "many", given.videos + VIDEOS_AT_START)
        few = make_videos(place / "few", VIDEOS_AT_START)
        loop: list[float] = []
        times: dict[str, list[float]] = {"all": [], "one": []}
        for repeat in range(given.repeats):
            loop.append(plain_loop(many, place / f"loop{repeat}"))
            for name, cores in (("all", every), ("one", one)):
                start = job(few, place / f"few-{name}{repeat}", cores)
                times[name].append(job(many, place / f"{name}{repeat}", cores) - start)
                print(
                    f"{name} ({len(cores)} cores): start-up {start:.1f} s, {given.videos} videos "
                    f"{times[name][-1]:.1f} s, the loop {loop[-1]:.1f} s",
                    flush=True,
                )
        same = rows_of(place / "loop0") == rows_of(place / "all0") == rows_of(place / "one0")
    loop = [seconds * given.videos / (given.videos + VIDEOS_AT_START) for seconds in loop]
    with_all, with_one = ratio(loop, times["all"]), ratio(loop, times["one"])
    return max(
        result(f"prepare job on {len(every)} cores against one thread", with_all, BOUND_ALL, same),
        result("prepare job on 1 core against one thread", with_one, BOUND_ONE, same),
    )


def result(name: str, measured: Ratio, bound: float, same: bool) -> int:
    return report(name, measured, passed=measured.ratio >= bound and same, bound=bound, rows_are_equal=same)


if __name__ == "__main__":
    sys.exit(main())
