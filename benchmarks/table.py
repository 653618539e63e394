"""Run benchmarks and write their results into the table of benchmarks/README.md.

    python benchmarks/table.py [--all] [unet.py speed.py ...]

Each runs with the number of threads in BENCHMARKS; --all includes the long ones, names select some. A row is what
`report` in timing.py prints. All rows are kept in results.jsonl: those of benchmarks that are not run again, or were
run on another machine, keep their date. Exits 1 when a benchmark does. The short ones take under 30 minutes.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# (command, threads, is long)
BENCHMARKS = (
    ("conformance.py", 1, False),
    ("inversion.py", 1, False),
    ("score.py", 1, False),
    ("unet.py", 2, False),
    ("speed.py", 2, False),
    ("peak_memory.py", 2, False),
    ("startup.py", 2, False),
    ("train_step.py", 1, False),
    ("train.py", 1, True),
    ("average.py", 1, False),
    ("train_scale.py", 1, False),
    ("train_runs.py", 1, True),
    ("serve.py", 1, False),
    ("serve_scale.py", 1, True),
    ("serve_load.py fair", 1, True),
    ("serve_load.py streams", 1, True),
    ("serve_load.py disk", 1, True),
    ("animate.py scheduling", 1, False),
    ("samplers.py", 2, True),
    ("decode.py", 1, True),
    ("prepare.py", 1, True),
    ("prepare.py --one-core", 1, True),
    ("memory.py", 1, True),
    ("animate.py rerun", 1, True),
    ("animate.py throughput", 1, True),
)
RESULTS, PAGE = HERE / "results.jsonl", HERE / "README.md"
BEGIN, END = "<!-- table: written by table.py -->", "<!-- end of table -->"
STATED = {"name", "ratio", "low", "high", "bound", "passed", "machine", "load", "command", "date"}


def run(command: str, threads: int) -> tuple[list[dict[str, Any]], int]:
    """Run a benchmark, showing its output; returns its rows and exit code."""
    rows = []
    began = time.perf_counter()
    print(f"== {command}", flush=True)
    with subprocess.Popen(
        [sys.executable, str(HERE / command.split()[0]), *command.split()[1:]],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"name"'):
                date = datetime.datetime.now(datetime.UTC).date().isoformat()
                rows.append({**json.loads(line), "command": command, "date": date})
            else:
                print(line, end="", flush=True)
    print(f"   exit code {process.returncode}, {time.perf_counter() - began:.0f} s", flush=True)
    return rows, process.returncode


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace old rows of the same command and machine by new ones; sorted by the order of BENCHMARKS."""
    new = list(new)
    again = {(row["command"], row["machine"]) for row in new}
    order = [command for command, _, _ in BENCHMARKS]
    kept = [row for row in old if row["command"] in order and (row["command"], row["machine"]) not in again]
    return sorted(kept + new, key=lambda row: order.index(row["command"]))


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    yield "| what | ratio | spread | bound | more | command | machine | date |"
    yield "| --- | ---: | ---: | ---: | --- | --- | --- | --- |"
    for row in rows:
        more = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name not in STATED)
        bound = "" if "bound" not in row else f"{row['bound']:g}"
        ratio = f"{row['ratio']:.2f}" if row["passed"] else f"**{row['ratio']:.2f}, not reached**"
        spread = f"{row['low']:.2f} to {row['high']:.2f}"
        cells = (row["name"], ratio, spread, bound, more, f"`{row['command']}`", row["machine"], row["date"])
        yield f"| {' | '.join(cells)} |"


def replace(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("only", nargs="*", help="files to run; default: all short ones")
    parser.add_argument("--all", action="store_true", help="run the long ones too")
    options = parser.parse_args(arguments)
    known = {command.split()[0] for command, _, _ in BENCHMARKS}
    if unknown := set(options.only) - known:
        parser.error(f"{', '.join(sorted(unknown))}: no such benchmark; there are {', '.join(sorted(known))}")
    code = 0
    for command, threads, long in BENCHMARKS:
        if command.split()[0] in options.only if options.only else options.all or not long:
            rows, failed = run(command, threads)
            code |= bool(failed)
            old = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
            replace(RESULTS, "".join(json.dumps(row) + "\n" for row in merged(old, rows)))
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    before, rest = PAGE.read_text().split(BEGIN)
    replace(PAGE, f"{before}{BEGIN}\n\n" + "\n".join(lines(rows)) + f"\n\n{END}{rest.split(END)[1]}")
    print("\n".join(lines(rows)))
    return code


if __name__ == "__main__":
    sys.exit(main())
