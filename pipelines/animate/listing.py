"""The listing of a catalog: OUT/results and OUT/rejects, in parts that are written once; and which rows are done.

Each row of the catalog has one row in one of the two. Only the driver writes here, so there are no concurrent writes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemo.image import NOTABLE_CUT
from cinemo.motion import NUM_BUCKETS
from pipelines.animate.plan import Plan
from pipelines.animate.records import REJECT, RESULT, result, table
from pipelines.core import hashing, storage
from pipelines.core.output import write_part

FOLDERS = {"results": RESULT, "rejects": REJECT}  # in this order: a video takes precedence over the row's reject
ROWS_PER_FILE = 512  # at most so many rows are listed again, from sidecars, after a kill
_READ = ("row", "key", "id", "measured_motion_bucket", "psnr_first_frame", "cut_away")
_FOUND = pa.schema([RESULT.field(name) for name in _READ])


@dataclass
class Survey:
    """What is listed: counts, and the keys of rows as sorted 8-byte hashes."""

    listed: int = 0  # rows with a video
    videos: int = 0  # distinct videos
    reasons: Counter[str] = field(default_factory=Counter)  # rows without a video, by reason
    buckets: list[int] = field(default_factory=lambda: [0] * NUM_BUCKETS)  # rows by measured motion
    psnr: float | None = None  # mean, dB
    much_cut: int = 0  # rows whose video lacks more than a third of the image
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # of all rows, sorted
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # numbers of these rows

    def lists(self, plan: Plan) -> bool:
        """Whether exactly the rows of the catalog are listed, with their numbers."""
        return np.array_equal(self.keys, plan.keys) and np.array_equal(self.rows, plan.rows)


def survey(output: str) -> Survey:
    """Read the listing at `output`."""
    found = Survey()
    keys, rows, names = [found.keys], [found.rows], [found.keys]
    psnr = 0.0
    for part in storage.scan(storage.join(output, "results"), _FOUND):
        keys.append(hashing.hash64(part["key"].to_pylist()))
        rows.append(part["row"].to_numpy())
        names.append(np.unique(hashing.hash64(part["id"].to_pylist())))
        psnr += float(part["psnr_first_frame"].to_numpy().sum())
        found.much_cut += pc.sum(pc.greater(part["cut_away"], NOTABLE_CUT)).as_py() or 0
        counts = np.bincount(part["measured_motion_bucket"].to_numpy(), minlength=NUM_BUCKETS)
        found.buckets = [int(old + new) for old, new in zip(found.buckets, counts, strict=True)]
        found.listed += part.num_rows
    for part in storage.scan(storage.join(output, "rejects"), REJECT):
        keys.append(hashing.hash64(part["key"].to_pylist()))
        rows.append(part["row"].to_numpy())
        found.reasons.update(part["reason"].to_pylist())
    found.videos = len(np.unique(np.concatenate(names)))
    found.psnr = round(psnr / found.listed, 2) if found.listed else None
    order = np.argsort(np.concatenate(keys))
    found.keys, found.rows = np.concatenate(keys)[order], np.concatenate(rows)[order]
    return found


def settle(output: str, plan: Plan) -> None:
    """Keep each row of the catalog at most once, with its current number, and drop rows that it no longer has.

    Videos are not deleted. A part in which nothing changes is not rewritten.
    """
    seen = np.empty(0, np.uint64)
    rewritten: set[str] = set()  # names come from content: a kill may have left the same file, listed later
    for folder, schema in FOLDERS.items():
        for uri in storage.list_files(storage.join(output, folder), (".parquet",)):
            if uri in rewritten:
                continue
            part = storage.read_tables(uri, [uri], schema)
            keys = hashing.hash64(part["key"].to_pylist())
            first = np.zeros(len(keys), bool)
            first[np.unique(keys, return_index=True)[1]] = True
            wanted = hashing.is_among(keys, plan.keys) & ~hashing.is_among(keys, seen) & first
            seen = np.union1d(seen, keys[wanted])
            places = np.searchsorted(plan.keys, keys[wanted])
            numbers = pa.array(plan.rows[places], pa.int64())
            if wanted.all() and part["row"].combine_chunks().equals(numbers):
                continue
            if wanted.any():
                kept = part.filter(pa.array(wanted)).set_column(0, schema.field("row"), numbers)
                rewritten.add(_write(kept, output, folder))
            storage.remove(uri)


class Writer:
    """Collects rows from the dataflow, and writes them in parts. Close it even after an exception.

    Twins wait until the row that makes their video is listed; then they become rows of the same video, or rejects with
    the same reason.
    """

    def __init__(self, output: str, ending: str) -> None:
        self.output, self.ending = output, ending
        self.waiting: dict[str, list[dict[str, Any]]] = {folder: [] for folder in FOLDERS}
        self.twins: dict[str, list[dict[str, Any]]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of STATE from the end of the dataflow."""
        if row["twin"]:
            own = {name: row[name] for name in ("row", "key", "image", "source_video")}
            self.twins.setdefault(row["id"], []).append(own)
        elif row["reason"]:
            self._put("rejects", row)
        else:
            self._put("results", result(row, self.ending))

    def close(self) -> None:
        """Write the remaining rows, and the twins."""
        for folder in FOLDERS:
            self._flush(folder)
        if self.twins:
            for folder, schema in FOLDERS.items():
                for part in storage.scan(storage.join(self.output, folder), schema):
                    for row in part.filter(pc.is_in(part["id"], pa.array(list(self.twins), pa.string()))).to_pylist():
                        for own in self.twins.pop(row["id"], []):
                            self._put(folder, {**row, **own})
                self._flush(folder)

    def _put(self, folder: str, row: Mapping[str, Any]) -> None:
        self.waiting[folder].append(dict(row))
        if len(self.waiting[folder]) >= ROWS_PER_FILE:
            self._flush(folder)

    def _flush(self, folder: str) -> None:
        if self.waiting[folder]:
            _write(table(self.waiting[folder], FOLDERS[folder]), self.output, folder)
            self.waiting[folder] = []


def results(output: str, columns: Sequence[str], below: int) -> Iterator[dict[str, Any]]:
    """Yield these columns, which include `row`, of listed videos whose row is below a number; in no order."""
    schema = pa.schema([RESULT.field(name) for name in columns])
    for part in storage.scan(storage.join(output, "results"), schema):
        yield from part.filter(pc.less(part["row"], below)).to_pylist()


def _write(part: pa.Table, output: str, folder: str) -> str:
    """Write one file, named by its content, so that equal rows give the same file; returns its URI."""
    return write_part(part.sort_by("row"), storage.join(output, folder))
