"""Speed of the prepare job against a plain loop of the same steps in one process and one thread.

    python benchmarks/prepare.py [--one-core] [--videos 200] [--repeats 1]

Both use the same videos and functions and write the same rows, at the job's defaults (16 frames of 128 x 192, the
built-in model). The job has all cores, or one. Its start-up, the time for VIDEOS_AT_START videos, is subtracted and
printed; imports and model loading of the loop are not timed either. Exits 1 when the job is not 1.6 times as fast as
the loop, or, on one core, 0.85 times. Takes about four minutes either way.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timing import ratio, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUND_ALL, BOUND_ONE = 1.6, 0.85
DIFFERENT = 8  # videos that are encoded; the rest are copies, whose other names give other random spans
VIDEOS_AT_START = 8


def make_videos(folder: Path, count: int) -> Path:
    """Write `count` videos of 360 x 640, 8 seconds each."""
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
    from pipelines import sources
    from pipelines.dataset import parts
    from pipelines.prepare import clips, flow
    from pipelines.prepare.config import PrepareConfig

    config = PrepareConfig(input=str(videos), output=str(output))
    sizes = flow.frame_sizes(config)
    encoder = clips.Encoder(config.model, flow.identity(config), "cpu")
    clips.warm_up()
    began = time.perf_counter()
    rows: list[clips.Row] = []
    for table in sources.iter_videos(config.input):
        for video in table.to_pylist():
            for span in clips.make_spans(video, config, sizes):
                row = clips.decode({"reason": None, **span}, config)
                rows.append(row if row["reason"] else encoder.encode(row))
                if len(rows) == config.clips_per_file:
                    parts.write(rows, config.output)
                    rows = []
    if rows:
        parts.write(rows, config.output)
    return time.perf_counter() - began


def start_job(videos: Path, output: Path, cores: set[int] | None = None) -> "subprocess.Popen[str]":
    """Start the command, on these cores or on all."""
    command = [sys.executable, str(ROOT / "ray_jobs" / "prepare.py"), f"--input={videos}", f"--output={output}"]
    return subprocess.Popen(
        command,
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
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args(arguments)
    cores = os.sched_getaffinity(0)
    cores = {min(cores)} if options.one_core else cores
    bound = BOUND_ONE if options.one_core else BOUND_ALL
    plain, job_s, starts = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        many = make_videos(place / "many", options.videos + VIDEOS_AT_START)
        few = make_videos(place / "few", VIDEOS_AT_START)
        for repeat in range(options.repeats):
            plain.append(
                plain_loop(many, place / f"loop{repeat}") * options.videos / (options.videos + VIDEOS_AT_START)
            )
            starts.append(job(few, place / f"few{repeat}", cores))
            job_s.append(job(many, place / f"job{repeat}", cores) - starts[-1])
        same = rows_of(place / "loop0") == rows_of(place / "job0")
    measured = ratio(plain, job_s)
    return report(
        f"prepare job on {len(cores)} cores against a loop in one thread, {options.videos} videos",
        measured,
        passed=measured.ratio >= bound and same,
        bound=bound,
        loop_seconds=statistics.median(plain),
        job_seconds=statistics.median(job_s),
        start_up_seconds=statistics.median(starts),
        rows_are_equal=same,
    )


if __name__ == "__main__":
    sys.exit(main())
