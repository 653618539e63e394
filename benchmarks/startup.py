"""Time of cold processes: `cinemo --help`; `cinemo animate` with the built-in model, to its first step and to its end.

    OMP_NUM_THREADS=2 python benchmarks/startup.py [--repeats 5]

Every run is a new process with the command's default settings. Exits 1 when, at the median, the help takes more than
0.5 s, the first step begins after more than 4 s, or the video is written after more than 15 s. Takes about a minute.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from timing import Ratio, report

HELP_S, FIRST_STEP_S, VIDEO_S = 0.5, 4.0, 15.0
# The command, which also prints the time when the loop over the steps begins.
CHILD = """
import sys, time
import cinemo.cli
from cinemo.commands import common
load = common.load
def load_and_watch(*arguments):
    pipe = load(*arguments)
    import cinemo.pipeline
    exact = cinemo.pipeline.denoise
    def timed(*arguments):
        print("first step at", time.time(), flush=True)
        return exact(*arguments)
    cinemo.pipeline.denoise = timed
    return pipe
common.load = load_and_watch
sys.argv = ["cinemo", "animate", *sys.argv[1:]]
cinemo.cli.main()
"""


def seconds(photo: Path, output: Path) -> tuple[float, float]:
    """Run the command; returns the seconds to the first step and to the end."""
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(photo), "--prompt", "the camera pans left", "--output", str(output)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"cinemo animate failed: {done.stderr}")
    step = next(float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("first step at"))
    return step - began, time.time() - began


def help_seconds() -> float:
    """Seconds of a process that prints the help."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cinemo.cli", "--help"], capture_output=True, check=True)
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    from PIL import Image
    from skimage.data import astronaut

    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        Image.fromarray(astronaut()).save(photo)
        times = [seconds(photo, Path(folder) / "out.mp4") for _ in range(options.repeats)]
    helped = [help_seconds() for _ in range(options.repeats)]
    code = 0
    for name, bound, values in (
        ("cinemo --help", HELP_S, helped),
        ("cinemo animate from a cold process until the first step", FIRST_STEP_S, [step for step, _ in times]),
        ("cinemo animate from a cold process until the video", VIDEO_S, [whole for _, whole in times]),
    ):
        middle = statistics.median(values)
        code |= report(
            f"{name}: {bound:g} s against it",
            Ratio(bound / middle, bound / max(values), bound / min(values)),
            passed=middle <= bound,
            bound=1.0,
            seconds=middle,
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
