"""The files of a dataset (OUT/data and OUT/rejects), and a survey of the rows in them, which are done.

A survey holds 8 bytes for each row, so that one of millions of rows fits into the driver's memory.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemo.motion import NUM_BUCKETS
from pipelines.core import hashing, storage
from pipelines.core.output import write_part
from pipelines.dataset import records

_FOLDERS = ("data", "rejects")
_KEY = pa.schema([records.ROW.field(name) for name in ("uri", "start_frame", "segment")])
GOOD = pa.schema([*_KEY, *(records.ROW.field(name) for name in ("clip_id", "interval", "bucket")), *records.SHAPE])
_BAD = _KEY.append(records.ROW.field("reason"))
# Training reads single clips in random order, and a row group at a time: small groups read little for one clip.
_ROW_GROUP_BYTES = 1 << 20
MERGED_BYTES = 256 << 20  # of the files that small ones are merged into


def keys(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Hash rows to their keys, uint64 (N,), by name and start frame; rejects of a whole video have no start frame."""
    return keys_of(pa.Table.from_pylist([dict(row) for row in rows], schema=_KEY))


def keys_of(table: pa.Table) -> np.ndarray:
    """Hash the rows of a table to their keys, as `keys` does."""
    starts = pc.fill_null(table["start_frame"].cast(pa.string()), "None")
    return hashing.hash64(pc.binary_join_element_wise(records.names_of(table), starts, "\n").to_pylist())


@dataclass
class Survey:
    """Counts and hashes of the rows that are written."""

    clips: int = 0
    rejected_videos: int = 0  # rejects of a whole video; here and below, a segment that a list names counts as a video
    reasons: Counter[str] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * NUM_BUCKETS)
    shapes: Counter[records.Shape] = field(default_factory=Counter)  # clips of each
    examples: dict[int, dict[str, Any]] = field(default_factory=dict)  # bucket -> its clip with the smallest id
    identity: int = 0  # hash of the rows, whatever files they are in and in whatever order
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # keys of all rows, sorted
    videos: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # hashes of names, sorted and unique
    rows_of: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # number of rows of each of `videos`
    whole: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # hashes of videos rejected as a whole

    def finished(self, clips_per_video: int) -> np.ndarray:
        """Sorted hashes of the names of finished videos: those with all their clips, or rejected as a whole."""
        return np.union1d(self.videos[self.rows_of >= clips_per_video], self.whole)

    @property
    def has_duplicates(self) -> bool:
        """Whether a row is there twice, or a clip and its reject; `finished` would count both."""
        return bool((self.keys[1:] == self.keys[:-1]).any())


def survey(output: str) -> Survey:
    """Survey OUT/data and OUT/rejects; pixels and latents are not read."""
    found = Survey()
    known, videos, whole = [found.keys], [found.videos], [found.whole]
    for folder, schema in zip(_FOLDERS, (GOOD, _BAD), strict=True):
        for table in storage.scan(storage.join(output, folder), schema):
            known.append(keys_of(table))
            videos.append(hashing.hash64(records.names_of(table).to_pylist()))
            if folder == "data":
                _count_clips(found, table)
            else:
                found.reasons.update(table["reason"].to_pylist())
                whole.append(videos[-1][table["start_frame"].is_null().to_numpy()])
                found.identity += int(known[-1].sum(dtype=np.uint64))
    found.keys = np.sort(np.concatenate(known))
    found.videos, found.rows_of = np.unique(np.concatenate(videos), return_counts=True)
    found.whole = np.unique(np.concatenate(whole))
    found.rejected_videos = sum(len(part) for part in whole)
    found.identity %= 1 << 128
    return found


def _count_clips(found: Survey, table: pa.Table) -> None:
    found.clips += table.num_rows
    counts = np.bincount(table["bucket"].to_numpy(), minlength=NUM_BUCKETS)
    found.buckets = [int(old + new) for old, new in zip(found.buckets, counts, strict=True)]
    for row in table.group_by([name for name, _ in records.SHAPE]).aggregate([([], "count_all")]).to_pylist():
        found.shapes[records.shape_of(row)] += row["count_all"]
    # The sum of the UUIDs identifies the rows.
    digits = "".join(table["clip_id"].to_pylist()).replace("-", "")
    words = np.frombuffer(bytes.fromhex(digits), ">u4").reshape(-1, 4).sum(0, dtype=np.uint64)
    found.identity += sum(int(word) << shift for word, shift in zip(words, (96, 64, 32, 0), strict=True))
    for row in table.group_by("bucket").aggregate([("clip_id", "min")]).to_pylist():
        bucket, smallest = row["bucket"], row["clip_id_min"]
        if bucket not in found.examples or smallest < found.examples[bucket]["clip_id"]:
            [found.examples[bucket]] = table.slice(pc.index(table["clip_id"], smallest).as_py(), 1).to_pylist()


def write(rows: Sequence[Mapping[str, Any]], output: str, by_shape: bool = False) -> tuple[int, int]:
    """Write rows of schema records.ROW as files of clips and one of rejects; returns (clips, rejects).

    Clips of each shape get a file; by_shape: in a folder of the shape, such as data/16x320x512. A task that runs twice
    writes the same files with the same bytes.
    """
    good = [row for row in rows if not row["reason"]]
    bad = [row for row in rows if row["reason"]]
    for shape in sorted({records.shape_of(row) for row in good}):
        same = [row for row in good if records.shape_of(row) == shape]
        _write(records.clip_table(same), storage.join(output, "data", *(["x".join(map(str, shape))] * by_shape)))
    if bad:
        _write(records.reject_table(bad), storage.join(output, "rejects"))
    return len(good), len(bad)


def drop_duplicates(output: str) -> None:
    """Keep one of each row, and no reject of a clip that is there.

    A worker that outlives its killed driver can write a clip that the rerun writes too.
    """
    seen = np.empty(0, np.uint64)  # of both folders: a clip, which comes first, takes precedence over its reject
    rewritten: set[str] = set()  # named by their rows, so one may replace a file that comes later in the list
    for folder in _FOLDERS:
        for uri in storage.list_files(storage.join(output, folder), (".parquet",)):
            if uri in rewritten:
                continue
            named = keys_of(storage.read_tables(uri, [uri], _KEY))
            fresh = np.zeros(len(named), bool)
            fresh[np.unique(named, return_index=True)[1]] = True
            fresh &= ~hashing.is_among(named, seen)
            seen = np.union1d(seen, named)
            if fresh.all():
                continue
            if fresh.any():
                kept = storage.read_tables(uri, [uri]).take(np.flatnonzero(fresh))
                rewritten.add(_write(kept, storage.parent(uri)))
            storage.remove(uri)


def to_merge(output: str, target: int = MERGED_BYTES) -> list[list[str]]:
    """Group the small files of clips of each folder by about `target` bytes. Files that fill no group are left out."""
    groups: list[list[str]] = []
    waiting: defaultdict[str, list[str]] = defaultdict(list)
    bytes_of: Counter[str] = Counter()
    for uri, size in storage.file_sizes(storage.join(output, "data"), (".parquet",)).items():
        folder = storage.parent(uri)
        if size < target // 2:
            waiting[folder].append(uri)
            bytes_of[folder] += size
        if bytes_of[folder] >= target:
            groups.append(waiting.pop(folder))
            del bytes_of[folder]
    return groups


def merge(output: str, uris: Sequence[str]) -> list[str]:
    """Write one file with the rows of these files of one folder, which stay; returns their URIs, to be removed then.

    The rows are there twice until then, as drop_duplicates expects after a kill.
    """
    tables = [storage.read_tables(uri, [uri]) for uri in uris]
    # Files of older versions lack columns.
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    _write(table.take(pc.sort_indices(table["clip_id"])), storage.parent(uris[0]))
    return list(uris)


def _write(table: pa.Table, folder: str) -> str:
    named = np.sort(keys_of(table))
    rows_per_group = max(1, _ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
    return write_part(table, folder, named.tobytes(), rows_per_group)
