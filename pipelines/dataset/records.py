"""The rows of a dataset: Arrow schemas, their version, and content ids.

Tensor columns are Arrow's native fixed-shape tensors, which plain pyarrow reads without Ray.
"""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.output import FAULT

SCHEMA_VERSION = 1

# Namespace of this project's ids. It never changes, so that a clip has the same id on every machine.
_NAMESPACE = uuid.UUID("5f3c1d52-58a7-5b0e-9c55-3f7f0d6c1a10")


# The part of the video that a list means, as a media fragment: t=1.5,3 (seconds) or frames=30,60; null: all of it.
SEGMENT = ("segment", pa.string())

REJECT = pa.schema(
    [
        ("uri", pa.string()),
        ("start_frame", pa.int64()),  # null: the whole video, or segment
        *FAULT,
        SEGMENT,
    ],
    metadata={"cinemo.schema_version": str(SCHEMA_VERSION)},
)

# How the video is stored (cinemo.video.VideoTraits); null in rows that were written before these were known.
TRAITS = (
    ("variable_rate", pa.bool_()),
    ("sample_aspect_ratio", pa.float32()),
    ("transfer", pa.string()),
    ("interlaced", pa.bool_()),
)

# The shape of a clip: frames, and their height and width in pixels.
SHAPE = (("num_frames", pa.int32()), ("height", pa.int32()), ("width", pa.int32()))
Shape = tuple[int, int, int]

# Schema of rows between the stages of the prepare job. Pixels and latents are bytes, which may be null: rejects pass
# through the same tables to the same writer, and no stage needs to know the shapes of another.
ROW = pa.schema(
    [
        ("uri", pa.string()),
        ("caption", pa.string()),
        ("clip_id", pa.string()),
        ("start_frame", pa.int64()),
        ("interval", pa.int32()),
        ("fps", pa.float32()),
        *SHAPE,
        ("score", pa.float32()),
        ("bucket", pa.uint8()),
        ("frames", pa.large_binary()),  # uint8 (N, H, W, 3)
        ("latents", pa.large_binary()),  # float16, of latents_shape (N, C, h, w)
        ("latents_shape", pa.list_(pa.int32())),
        ("latents_logvar", pa.large_binary()),  # float16, of latents_shape; null unless it is stored
        ("text_embeds", pa.large_binary()),  # float16, of text_shape (T, D)
        ("text_shape", pa.list_(pa.int32())),
        ("first_frame", pa.binary()),  # WebP
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("decode_s", pa.float32()),  # seconds that each stage worked on the row
        ("score_s", pa.float32()),
        ("encode_s", pa.float32()),
        *TRAITS,
        SEGMENT,
    ]
)

_TENSORS = {"latents": "latents_shape", "latents_logvar": "latents_shape", "text_embeds": "text_shape"}


def name_of(row: Mapping[str, Any]) -> str:
    """What tells the rows of a list apart: the uri of the video, and the segment of it, where one is meant."""
    return f"{row['uri']}#{row['segment']}" if row.get("segment") else str(row["uri"])


def names_of(table: pa.Table) -> pa.ChunkedArray:
    """The name of each row of a table, as name_of gives it; the table may lack the column of segments."""
    if SEGMENT[0] not in table.column_names:
        return table["uri"]
    segment = pc.if_else(pc.equal(table[SEGMENT[0]], ""), None, table[SEGMENT[0]])
    return pc.binary_join_element_wise(table["uri"], segment, "#", null_handling="skip")


def clip_id(uri: str, start: int, interval: int, num_frames: int, size: tuple[int, int], sampling_version: str) -> str:
    """Make the id of a clip: a uuid5 of all that determines its pixels.

    uri: the name of the row (name_of), so that overlapping segments have clips of their own. start, interval: in frames
    of the video. size: (H, W) in pixels.
    """
    height, width = size
    key = f"{uri}\n{start}\n{interval}\n{num_frames}\n{height}x{width}\n{sampling_version}"
    return str(uuid.uuid5(_NAMESPACE, key))


def clip_schema(tensors: Mapping[str, Sequence[int]]) -> pa.Schema:
    """Schema of `data/*.parquet`. tensors: name -> shape of the tensors that are stored, all of them float16.

    latents (N, C, h, w): posterior mean, scaled. latents_logvar (N, C, h, w): the log-variance around it, scaled too.
    text_embeds (T, D). A dataset of scores alone has no tensors. first_frame: the clip's first frame, as WebP, for
    people and for decoders that move it; null without latents. segment: the part of the video that the list names.
    Files of older versions lack these two and TRAITS.
    """
    fields = [
        *(ROW.field(name) for name in ("clip_id", "uri", "caption", "start_frame", "interval", "fps")),
        *SHAPE,
        *(ROW.field(name) for name in ("score", "bucket", "first_frame", "segment")),
        *((name, pa.fixed_shape_tensor(pa.float16(), shape)) for name, shape in tensors.items()),
        *TRAITS,
    ]
    return pa.schema(fields, metadata={"cinemo.schema_version": str(SCHEMA_VERSION)})


def iter_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Iterate over the rows of a table, with the pixels of one clip at a time in Python's memory."""
    for index in range(table.num_rows):
        yield table.slice(index, 1).to_pylist()[0]


def row_table(row: Mapping[str, Any]) -> pa.Table:
    """Make a table of schema ROW with one row; missing names are null."""
    return pa.Table.from_pylist([dict(row)], schema=ROW)


def shape_of(row: Mapping[str, Any]) -> Shape:
    """The shape of a row's clip: (frames, height, width)."""
    return row["num_frames"], row["height"], row["width"]


def clip_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make the table of clips that is stored, of rows of schema ROW; sorted, so that equal rows make equal files.

    Raises ValueError unless all rows have the tensors and shapes of the first.
    """
    rows = sorted(rows, key=lambda row: row["clip_id"])
    shapes = {name: rows[0][shape] for name, shape in _TENSORS.items() if rows[0].get(name) is not None}
    schema = clip_schema(shapes)
    columns = []
    for field in schema:
        if field.name in shapes:
            columns.append(_tensors([row[field.name] for row in rows], field.type))
        else:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def reject_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Make the table of rejects that is stored, of rows of schema ROW with a reason; sorted by video and frame."""
    rows = sorted(rows, key=lambda row: (name_of(row), -1 if row["start_frame"] is None else row["start_frame"]))
    return pa.Table.from_pylist(rows, schema=REJECT)


def _tensors(values: list[bytes], kind: pa.FixedShapeTensorType) -> pa.Array:
    flat = np.frombuffer(b"".join(values), np.float16)
    cells = int(np.prod(kind.shape))
    if flat.size != len(values) * cells:
        raise ValueError(
            f"{len(values)} tensors of shape {kind.shape} need {len(values) * cells} numbers, got {flat.size}"
        )
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat), cells)
    return pa.ExtensionArray.from_storage(kind, storage)
