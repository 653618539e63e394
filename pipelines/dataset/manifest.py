"""The list of what a job works on, kept with its output: read once from the source, then in slices by any worker.

Knows Parquet files and slices of rows. Knows nothing of what the source was, or of what is done with a row.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import hashing, storage
from pipelines.core.output import write_part

_GROUP = 1024  # rows that a reader loads for a slice, at least
_LARGEST = 1024  # rows in a slice: what a lost worker makes do again

SLICE = pa.schema([("file", pa.string()), ("first", pa.int64()), ("count", pa.int64())])


def write(tables: Iterable[pa.Table], folder: str, name: str = "uri") -> tuple[dict[str, int], np.ndarray]:
    """Store the rows; returns the files with their number of rows, and the sorted hashes of the rows' names.

    name: the column of text that names a row. Files are named by their content: the same rows again change nothing, and
    files of other ones are removed.
    """
    kept, hashes = {}, [np.empty(0, np.uint64)]
    for table in tables:
        kept[write_part(table, storage.absolute(folder), group=_GROUP)] = table.num_rows
        hashes.append(hashing.hash64(table[name].to_pylist()))
    for stale in set(storage.list_files(folder, (".parquet",))) - set(kept):
        storage.remove(stale)
    return kept, np.sort(np.concatenate(hashes))


def slices(files: dict[str, int], smallest: int = 4, wanted: int = 256) -> pa.Table:
    """A table of slices (SLICE) that covers files of so many rows each, in order.

    smallest: rows in a slice, at least. wanted: slices, as far as that and _LARGEST allow; every core needs work.
    """
    step = min(_LARGEST, max(smallest, sum(files.values()) // wanted))
    rows = [(uri, first, min(step, total - first)) for uri, total in files.items() for first in range(0, total, step)]
    return pa.Table.from_pylist([dict(zip(SLICE.names, row, strict=True)) for row in rows], schema=SLICE)


def read_slice(file: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    """The rows of a slice, one by one; reads the row groups that it touches."""
    files, path = storage.filesystem(file)
    parquet = pq.ParquetFile(path, filesystem=files)
    groups = range(first // _GROUP, (first + count - 1) // _GROUP + 1)
    table = parquet.read_row_groups(list(groups)).slice(first - groups.start * _GROUP, count)
    yield from table.to_pylist()
