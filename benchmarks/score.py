"""Speed of the motion score against a loop over scikit-image, and the difference of the results.

    OMP_NUM_THREADS=1 python benchmarks/score.py

One thread each, a 16-frame clip of 320 x 512, interleaved. The largest difference includes contents that are sensitive
to rounding: flat, saturated, noise, gradients, the smallest frames. The first call is timed in new processes, with the
compiled loop in numba's cache, and with an empty cache. Exits 1 below 8 times as fast, or above 2e-5. Takes about half
a minute.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise

import numpy as np
from skimage.data import astronaut
from skimage.metrics import structural_similarity
from timing import compare, ratio, report

from cinemo.motion import neighbour_ssim

LEAST_RATIO, LARGEST_DIFFERENCE = 8.0, 2e-5
FIRST_CALL = """
import time
import numpy as np
import cinemo.motion
frames = np.zeros((2, 7, 7, 3), np.uint8)
began = time.perf_counter()
cinemo.motion.neighbour_ssim(frames)
print(time.perf_counter() - began)
"""


def reference(frames: np.ndarray) -> np.ndarray:
    return np.array([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairwise(frames)])


def contents() -> dict[str, np.ndarray]:
    """Make clips uint8 (N, H, W, 3) by name; the first is the one that is timed."""
    generator = np.random.default_rng(0)
    photo = astronaut().astype(np.int64)
    sliding = np.stack([np.roll(photo, (3 * k, 2 * k), (0, 1))[:320] for k in range(16)])
    dark = np.zeros((4, 64, 96, 3), np.uint8)
    return {
        "photo": np.clip(sliding + generator.integers(-6, 7, sliding.shape), 0, 255).astype(np.uint8),
        "noise": generator.integers(0, 256, (4, 101, 67, 3), np.uint8),
        "almost white": generator.integers(253, 256, (4, 64, 96, 3), np.uint8),
        "black and white": generator.integers(0, 2, (4, 64, 96, 3)).astype(np.uint8) * 255,
        "flat": dark + np.arange(4, dtype=np.uint8)[:, None, None, None] * 85,
        "gradient": dark + np.arange(96, dtype=np.uint8)[:, None] + np.arange(4, dtype=np.uint8)[:, None, None, None],
        "smallest": generator.integers(0, 256, (9, 7, 7, 3), np.uint8),
    }


def first_call(cache: str | None, tries: int) -> float:
    """Median seconds of the first call in a new process; `cache` is a folder for numba; None is its default."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-c", FIRST_CALL]
    runs = [subprocess.run(command, env=environment, check=True, capture_output=True) for _ in range(tries)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> int:
    clips = contents()
    difference = max(float(np.abs(neighbour_ssim(clip) - reference(clip)).max()) for clip in clips.values())
    clip = clips["photo"]
    seconds = compare({"scikit-image": lambda: reference(clip), "ours": lambda: neighbour_ssim(clip)}, 7)
    measured = ratio(seconds["scikit-image"], seconds["ours"])
    with tempfile.TemporaryDirectory() as folder:
        compiling = first_call(folder, 1)
    return report(
        "motion score",
        measured,
        passed=measured.ratio >= LEAST_RATIO and difference <= LARGEST_DIFFERENCE,
        largest_difference=difference,
        milliseconds=1000 * statistics.median(seconds["ours"]),
        first_call_seconds=first_call(None, 3),
        first_call_compiling_seconds=compiling,
    )


if __name__ == "__main__":
    sys.exit(main())
