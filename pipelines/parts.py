"""The files of a dataset: OUT/data and OUT/rejects, written exactly once, and what they say is done.

Knows Parquet files and keys of rows. Knows nothing of decoding, models or Ray.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import records, storage

_GOOD = pa.schema([("clip_id", pa.string()), ("uri", pa.string()), ("bucket", pa.uint8())])
# A training step reads single clips in random order: a row group is what it reads at a time.
_ROW_GROUP_BYTES = 1 << 20


def key(row: Mapping[str, Any]) -> str:
    """What a row is known by among the done ones, whether it is a span or a reject of a whole video."""
    return f"{row['uri']}\n{row.get('start_frame')}"


def done(output: str) -> set[str]:
    """Keys of all rows that are written, clips and rejects. Reads two columns of each file."""
    wanted = pa.schema([("uri", pa.string()), ("start_frame", pa.int64())])
    tables = [storage.read_columns(storage.join(output, folder), wanted) for folder in ("data", "rejects")]
    return {key(row) for table in tables for row in table.to_pylist()}


def videos(output: str) -> set[str]:
    """Videos of which a clip or a reject is written."""
    return {*read_good(output)["uri"].to_pylist(), *read_bad(output)["uri"].to_pylist()}


def read_good(output: str) -> pa.Table:
    """clip_id, uri and bucket of all clips."""
    return storage.read_columns(storage.join(output, "data"), _GOOD)


def read_bad(output: str) -> pa.Table:
    """All rejects."""
    return storage.read_columns(storage.join(output, "rejects"), records.REJECT)


def write(rows: Sequence[Mapping[str, Any]], output: str, size: tuple[int, int]) -> tuple[int, int]:
    """Write rows of records.ROW as one part and one reject file; returns how many of each.

    size: (H, W) in pixels. A task that runs twice writes the same names with the same bytes.
    """
    good = [row for row in rows if not row["reason"]]
    bad = [row for row in rows if row["reason"]]
    if good:
        _write_part(records.clip_table(good, size), storage.join(output, "data"))
    if bad:
        _write_part(records.reject_table(bad), storage.join(output, "rejects"))
    return len(good), len(bad)


def drop_duplicates(output: str) -> None:
    """Keep each row once. A worker that outlives its killed driver may write a clip that the rerun writes as well."""
    for folder in ("data", "rejects"):
        seen: set[str] = set()
        for uri in storage.list_files(storage.join(output, folder), (".parquet",)):
            files, path = storage.filesystem(uri)
            keys = [
                key(row) for row in pq.read_table(path, columns=["uri", "start_frame"], filesystem=files).to_pylist()
            ]
            keep = [index for index, name in enumerate(keys) if name not in seen]
            seen.update(keys)
            if len(keep) == len(keys):
                continue
            if keep:
                _write_part(pq.read_table(path, filesystem=files).take(keep), storage.join(output, folder))
            storage.remove(uri)


def _write_part(table: pa.Table, folder: str) -> None:
    keys = sorted(key(row) for row in table.select(["uri", "start_frame"]).to_pylist())
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()
    rows_per_group = max(1, _ROW_GROUP_BYTES * table.num_rows // max(1, table.nbytes))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows_per_group, compression="zstd")
    storage.put(storage.join(folder, f"part-{digest[:32]}.parquet"), buffer.getvalue())
