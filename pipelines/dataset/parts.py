"""The files of a dataset (OUT/data and OUT/rejects), and a survey of the rows in them, which are done.

A survey holds 8 bytes for each row, so that one of millions of rows fits into the driver's memory.
"""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cinemo.motion import NUM_BUCKETS
from pipelines.core import hashing, storage
from pipelines.core.output import write_part
from pipelines.dataset import records

_FOLDERS = ("data", "rejects")
_KEY = pa.schema([records.ROW.field(name) for name in ("uri", "start_frame", "segment")])
_GOOD = pa.schema([*_KEY, *(records.ROW.field(name) for name in ("clip_id", "interval", "bucket"))])
_BAD = _KEY.append(records.ROW.field("reason"))
# Training reads single clips in random order, and a row group at a time: small groups read little for one clip.
_ROW_GROUP_BYTES = 1 << 20


def keys(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Hash rows to their keys, uint64 (N,), by name and start frame; rejects of a whole video have no start frame."""
    return hashing.hash64(f"{records.name_of(row)}\n{row.get('start_frame')}" for row in rows)


@dataclass
class Survey:
    """Counts and hashes of the rows that are written."""

    clips: int = 0
    rejected_videos: int = 0  # rejects of a whole video; here and below, a segment that a list names counts as a video
    reasons: Counter[str] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * NUM_BUCKETS)
    examples: dict[int, dict[str, Any]] = field(default_factory=dict)  # bucket -> its clip with the smallest id
    identity: int = 0  # hash of the rows, whatever files they are in and in whatever order
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # keys of all rows, sorted
    videos: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # hashes of names, sorted and unique
    rows_of: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # number of rows of each of `videos`
    whole: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # hashes of videos rejected as a whole

    def finished(self, clips_per_video: int) -> np.ndarray:
        """Sorted hashes of the names of finished videos: those with all their clips, or rejected as a whole."""
        return np.union1d(self.videos[self.rows_of >= clips_per_video], self.whole)


def survey(output: str) -> Survey:
    """Survey OUT/data and OUT/rejects; pixels and latents are not read."""
    found = Survey()
    known, videos, whole = [found.keys], [found.videos], [found.whole]
    for folder, schema in zip(_FOLDERS, (_GOOD, _BAD), strict=True):
        for table in storage.scan(storage.join(output, folder), schema):
            rows = table.to_pylist()
            known.append(keys(rows))
            videos.append(hashing.hash64(map(records.name_of, rows)))
            if folder == "data":
                _count_clips(found, rows)
            else:
                found.reasons.update(row["reason"] for row in rows)
                whole.append(videos[-1][np.array([row["start_frame"] is None for row in rows], bool)])
                found.identity += int(known[-1].sum(dtype=np.uint64))
    found.keys = np.sort(np.concatenate(known))
    found.videos, found.rows_of = np.unique(np.concatenate(videos), return_counts=True)
    found.whole = np.unique(np.concatenate(whole))
    found.rejected_videos = sum(len(part) for part in whole)
    found.identity %= 1 << 128
    return found


def _count_clips(found: Survey, rows: Sequence[Mapping[str, Any]]) -> None:
    found.clips += len(rows)
    for row in rows:
        bucket = row["bucket"]
        found.buckets[bucket] += 1
        found.identity += uuid.UUID(row["clip_id"]).int
        if bucket not in found.examples or row["clip_id"] < found.examples[bucket]["clip_id"]:
            found.examples[bucket] = dict(row)


def write(rows: Sequence[Mapping[str, Any]], output: str, num_frames: int, size: tuple[int, int]) -> tuple[int, int]:
    """Write rows of schema records.ROW as one file of clips and one of rejects; returns the number of each.

    size: (H, W) in pixels. A task that runs twice writes the same files with the same bytes.
    """
    good = [row for row in rows if not row["reason"]]
    bad = [row for row in rows if row["reason"]]
    if good:
        _write(records.clip_table(good, num_frames, size), storage.join(output, "data"))
    if bad:
        _write(records.reject_table(bad), storage.join(output, "rejects"))
    return len(good), len(bad)


def drop_duplicates(output: str) -> None:
    """Keep one of each row. A worker that outlives its killed driver can write a clip that the rerun writes too."""
    for folder in _FOLDERS:
        seen = np.empty(0, np.uint64)
        for uri in storage.list_files(storage.join(output, folder), (".parquet",)):
            files, path = storage.filesystem(uri)
            named = keys(pq.read_table(path, schema=_KEY, filesystem=files).to_pylist())
            fresh = ~hashing.is_among(named, seen)
            seen = np.union1d(seen, named)
            if fresh.all():
                continue
            if fresh.any():
                kept = pq.read_table(path, filesystem=files).take(np.flatnonzero(fresh))
                _write(kept, storage.join(output, folder))
            storage.remove(uri)


def _write(table: pa.Table, folder: str) -> None:
    named = np.sort(keys(table.select([name for name in _KEY.names if name in table.column_names]).to_pylist()))
    rows_per_group = max(1, _ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
    write_part(table, folder, named.tobytes(), rows_per_group)
