"""Manifest: the list of a job's inputs, stored with its output. It is made once from the source, and read in slices."""

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import hashing, storage
from pipelines.core.output import write_part
from pipelines.core.patience import patient

_GROUP = 1024  # rows in a row group: a reader loads at least these for a slice
_LARGEST = 1024  # rows in a slice, at most: rows redone after a worker is lost

SLICE = pa.schema([("file", pa.string()), ("first", pa.int64()), ("count", pa.int64())])


def write(
    tables: Iterable[pa.Table], folder: str, names: Callable[[pa.Table], Any] = itemgetter("uri")
) -> tuple[dict[str, int], np.ndarray]:
    """Store the rows; returns the number of rows of each file, and the sorted hashes of the rows' names.

    names: gives the column with the names of a table's rows. Files are named by their content: writing the same rows
    again changes nothing, and files of other rows are removed.
    """
    kept, hashes = {}, [np.empty(0, np.uint64)]
    for table in tables:
        kept[write_part(table, storage.absolute(folder), group=_GROUP)] = table.num_rows
        hashes.append(hashing.hash64(names(table).to_pylist()))
    for stale in set(storage.list_files(folder, (".parquet",))) - set(kept):
        storage.remove(stale)
    return kept, np.sort(np.concatenate(hashes))


def slices(files: dict[str, int], smallest: int = 4, wanted: int = 256) -> pa.Table:
    """Make a table of slices (SLICE) that covers the files in order.

    files: their numbers of rows. smallest: rows in a slice, at least. wanted: number of slices to aim at, within
    `smallest` and _LARGEST, so that every core has work.
    """
    step = min(_LARGEST, max(smallest, sum(files.values()) // wanted))
    rows = [(uri, first, min(step, total - first)) for uri, total in files.items() for first in range(0, total, step)]
    return pa.Table.from_pylist([dict(zip(SLICE.names, row, strict=True)) for row in rows], schema=SLICE)


def read_slice(file: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a slice; loads the row groups that contain them."""
    groups = range(first // _GROUP, (first + count - 1) // _GROUP + 1)
    yield from _read_groups(file, list(groups)).slice(first - groups.start * _GROUP, count).to_pylist()


@patient
def _read_groups(file: str, groups: list[int]) -> pa.Table:
    files, path = storage.filesystem(file)
    return pq.ParquetFile(path, filesystem=files).read_row_groups(groups)
