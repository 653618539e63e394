"""Rows a second of a driver's work: surveys of a listing and of a dataset, and claims of rows in the ledger.

    python benchmarks/scale.py [--rows 1000000]

Writes files of the jobs' size into a temporary folder. Minutes for 10 million rows are extrapolated.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.animate import listing
from pipelines.animate.flow import CLAIMED, Ledger
from pipelines.animate.records import RESULT
from pipelines.dataset import parts

CLIPS_PER_FILE = 1024


def digests(numbers: np.ndarray) -> list[str]:
    """Distinct texts of 32 hexadecimal digits."""
    mixed = (numbers.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    return [f"{number:032x}" for number in mixed.tolist()]


def write_listing(output: Path, rows: int) -> None:
    """Write OUT/results as the animate job does."""
    (output / "results").mkdir(parents=True)
    for first in range(0, rows, listing.ROWS_PER_FILE):
        numbers = np.arange(first, min(rows, first + listing.ROWS_PER_FILE))
        count, names = len(numbers), digests(numbers)
        known = {"row": numbers, "key": names, "id": names, "psnr_first_frame": np.full(count, 30.0)}
        known |= {"measured_motion_bucket": numbers % 20, "cut_away": np.zeros(count)}
        columns = [pa.array(known.get(field.name, [None] * count), field.type) for field in RESULT]
        pq.write_table(pa.Table.from_arrays(columns, schema=RESULT), output / "results" / f"part-{first:09}.parquet")


def write_dataset(output: Path, rows: int) -> None:
    """Write the columns of OUT/data that a survey reads."""
    (output / "data").mkdir(parents=True)
    for first in range(0, rows, CLIPS_PER_FILE):
        numbers = np.arange(first, min(rows, first + CLIPS_PER_FILE))
        known = {
            "clip_id": [f"{one[:8]}-{one[8:12]}-{one[12:16]}-{one[16:20]}-{one[20:]}" for one in digests(numbers)],
            "uri": [f"s3://bucket/videos/{number // 4:09}.mp4" for number in numbers],
            "start_frame": numbers % 4,
            "bucket": numbers % 20,
        }
        fields = [field for field in parts.GOOD if field.name in known]
        table = pa.table({field.name: pa.array(known[field.name], field.type) for field in fields})
        pq.write_table(table, output / "data" / f"part-{first:09}.parquet")


def claim(rows: int) -> None:
    """Claim ids in a ledger, and print the memory that it takes."""
    before, ledger = psutil.Process().memory_info().rss, Ledger()
    for first in range(0, rows, CLAIMED):
        names = digests(np.arange(first, min(rows, first + CLAIMED)))
        assert all(ledger.claim(names, names))
    print(f"ledger: {(psutil.Process().memory_info().rss - before) / rows:.0f} bytes of resident memory a row")


def timed(what: str, rows: int, work: Callable[[], Any]) -> None:
    """Print rows a second, and the minutes that 10 million rows take."""
    began = time.perf_counter()
    work()
    speed = rows / (time.perf_counter() - began)
    print(f"{what}: {speed:,.0f} rows/s, {1e7 / speed / 60:.1f} min for 10 million", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        write_listing(Path(folder), rows)
        timed("survey of a listing", rows, lambda: listing.survey(folder))
        write_dataset(Path(folder), rows)
        timed("survey of a dataset", rows, lambda: parts.survey(folder))
    timed("claims in the ledger", rows, lambda: claim(rows))


if __name__ == "__main__":
    main()
