"""Memory of all processes of the prepare job, for some videos and for ten times as many.

    python benchmarks/memory.py [--videos 30]

Peak of the sum of proportional set sizes (shared pages count once) over the driver, Ray and all workers, sampled every
0.2 s. Exits 1 when ten times the videos take more than 1.1 times the memory. Takes about three minutes on two cores.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from prepare import make_videos, start_job
from timing import Ratio, report

MORE, BOUND = 10, 1.1


def peak_bytes(videos: Path, output: Path) -> int:
    """Run the job; returns the peak sum of its processes' proportional set sizes, in bytes. Exits if the job fails."""
    job = start_job(videos, output)
    peak = 0
    while job.poll() is None:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(job.pid)
            for process in [driver, *driver.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_full_info().pss
        peak = max(peak, total)
        time.sleep(0.2)
    if job.returncode:
        sys.exit(f"the job failed with {job.returncode}")
    return peak


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=int, default=30)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        peaks = {}
        for count in (options.videos, MORE * options.videos):
            videos = make_videos(place / f"videos{count}", count)
            peaks[count] = peak_bytes(videos, place / f"out{count}")
            print(f"{count} videos: {peaks[count] / 1e6:.0f} MB", flush=True)
    grown = peaks[MORE * options.videos] / peaks[options.videos]
    return report(
        f"memory of the prepare job, {MORE * options.videos} videos against {options.videos}",
        Ratio(grown, grown, grown),
        passed=grown <= BOUND,
        bound=BOUND,
        peak_mb=peaks[MORE * options.videos] / 1e6,
    )


if __name__ == "__main__":
    sys.exit(main())
