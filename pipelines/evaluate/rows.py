"""The rows of an evaluation: their schema, OUT/rows and OUT/rejects, and which of them are done.

Each case under each variant has one row, in one of the two; its id is a hash of everything that the row depends on.
"""

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.core import storage
from pipelines.core.output import FAULT, write_part
from pipelines.dataset import records

_NAMESPACE = uuid.UUID("1f6f1a6e-0e0c-5c0e-8f5f-6b7a2f1d3c55")
FEATURES = ("i3d", "c3d", "inception")  # float32; kept in rows because metrics of sets need all of them

ROW = pa.schema(
    [
        ("id", pa.string()),
        ("name", pa.string()),
        ("variant", pa.string()),
        ("prompt", pa.string()),
        ("kind", pa.string()),
        ("direction", pa.string()),
        ("seed", pa.int64()),
        ("video", pa.string()),  # below the output
        ("requested_bucket", pa.int32()),
        ("measured_bucket", pa.int32()),
        ("score", pa.float64()),
        ("psnr", pa.float64()),
        ("ssim", pa.float64()),
        ("lpips", pa.float64()),
        ("smoothness", pa.float64()),
        ("abruptness", pa.float64()),
        ("colour_drift", pa.list_(pa.float64())),  # by frame, as is mean_colour_drift
        ("mean_colour_drift", pa.list_(pa.float64())),
        ("consistency", pa.float64()),
        ("right", pa.float64()),
        ("down", pa.float64()),
        ("outward", pa.float64()),
        ("clockwise", pa.float64()),
        ("agrees", pa.bool_()),  # null: the prompt has no known direction
        ("clipsim", pa.float64()),
        ("clip_consistency", pa.float64()),
        *((name, pa.list_(pa.float32())) for name in FEATURES),  # inception: every frame's, one after the other
        ("seconds", pa.float64()),
        *FAULT,  # null: measured
    ]
)
REJECT = pa.schema([ROW.field(name) for name in ("id", "name", "variant", "stage", "reason", "message")])


def row_id(case: Mapping[str, Any], variant: str, fingerprint: str, settings: str) -> str:
    """A uuid5 of what determines a row: the case, the model's files and the settings."""
    key = "\n".join([records.name_of(case), str(case["caption"]), variant, fingerprint, settings])
    return str(uuid.uuid5(_NAMESPACE, key))


def write(rows: list[dict[str, Any]], output: str) -> None:
    """Write rows to files below OUT/rows and OUT/rejects, each named by a hash of its ids."""
    for folder, schema, part in (
        ("rows", ROW, [row for row in rows if not row["reason"]]),
        ("rejects", REJECT, [row for row in rows if row["reason"]]),
    ):
        if not part:
            continue
        part.sort(key=lambda row: row["id"])
        named = "\n".join(row["id"] for row in part).encode()
        write_part(pa.Table.from_pylist(part, schema=schema), storage.join(output, folder), named)


def done(output: str) -> set[str]:
    """Ids of all rows that are written, including rejects."""
    only = pa.schema([ROW.field("id")])
    folders = (storage.join(output, name) for name in ("rows", "rejects"))
    return {row for folder in folders for table in storage.scan(folder, only) for row in table["id"].to_pylist()}


def read(output: str, wanted: Iterable[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read the measured rows and the rejects with the ids `wanted`, in that order, each once."""
    order = {name: place for place, name in enumerate(wanted)}
    found: list[dict[str, dict[str, Any]]] = []
    for folder, schema in (("rows", ROW), ("rejects", REJECT)):
        rows = (row for table in storage.scan(storage.join(output, folder), schema) for row in table.to_pylist())
        found.append({row["id"]: row for row in rows if row["id"] in order})
    measured, rejects = ([rows[name] for name in order if name in rows] for rows in found)
    return measured, [row for row in rejects if row["id"] not in found[0]]
