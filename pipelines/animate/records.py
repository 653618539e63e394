"""The rows of the catalog job: Arrow schemas, their version, ids and keys.

Knows Arrow and names. Knows nothing of files, of Ray, or of how a row comes about.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from pipelines.core import output
from pipelines.core.output import FAULT, Reason

SCHEMA_VERSION = 1
METHOD_VERSION = "1"  # change it when the same model and settings would give another video

_VERSION = {"cinemo.schema_version": str(SCHEMA_VERSION)}

# A row of OUT/catalog: what is asked for. request is JSON, null where the row is at fault; in it, motion_bucket is null
# where it is the source video's own, which is measured later.
TASK = pa.schema(
    [
        ("row", pa.int64()),  # its number in the catalog, from 0
        ("key", pa.string()),  # what tells that a row changed
        ("image", pa.string()),
        ("source_video", pa.string()),  # whose motion the image gets; null for none
        ("request", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ],
    metadata=_VERSION,
)

# A row on its way through the job. Whatever has no pixels and no frames (rejects, what is done already) passes through.
STATE = pa.schema(
    [
        *TASK,
        ("id", pa.string()),
        ("image_digest", pa.string()),
        ("pixels", pa.large_binary()),  # float32 (3, H, W) in [-1, 1], the fitted image
        ("video_digest", pa.string()),
        ("clip", pa.large_binary()),  # uint8 (N, H, W, 3), of the source video
        ("frames", pa.large_binary()),  # uint8 (N, H, W, 3)
        ("facts", pa.string()),  # JSON: what is known of the video so far; in the end, its sidecar
        ("twin", pa.bool_()),  # another row of this job has the same id, and gets the video made
        ("made", pa.bool_()),  # the video was written by this job
        ("stage", pa.string()),
    ]
)

# A row of OUT/results: one for each row of the catalog that has a video.
RESULT = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("id", pa.string()),
        ("video", pa.string()),  # relative to the output
        ("image", pa.string()),
        ("image_digest", pa.string()),
        ("source_video", pa.string()),  # null where the image was animated without one
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("motion_bucket", pa.uint8()),  # asked for
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("cut_away", pa.float32()),  # share of the image that is in no frame; null in outputs of before
        ("num_frames", pa.int32()),
        ("fps", pa.float32()),
        ("measured_motion_score", pa.float32()),
        ("measured_motion_bucket", pa.uint8()),
        ("psnr_first_frame", pa.float32()),  # dB, against the fitted image
        ("seconds", pa.float32()),  # that sampling and decoding took for this video's share of its batch
        ("model_fingerprint", pa.string()),
    ],
    metadata=_VERSION,
)

# A row of OUT/rejects: one for each row of the catalog that has none.
REJECT = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("id", pa.string()),  # null: it was not known yet
        ("image", pa.string()),
        *FAULT,
    ],
    metadata=_VERSION,
)


def digest(value: Any) -> str:
    """32 hexadecimal digits that stand for a JSON value: 128 bits, the same on every machine, for ever."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def animation_id(
    image_digest: str, request: Mapping[str, Any], made_with: Mapping[str, str], video_digest: str | None = None
) -> str:
    """The id of a video, of all that it depends on. made_with: model fingerprint, precision, format.

    video_digest: of the source video, None where there is none.
    """
    edited = [] if video_digest is None else [video_digest]
    return digest([METHOD_VERSION, image_digest, dict(request), dict(made_with), *edited])


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema = STATE) -> pa.Table:
    """Rows as a table of a schema; names that they lack are null, others are left out."""
    rows = list(rows)
    return pa.Table.from_arrays([pa.array([row.get(f.name) for row in rows], f.type) for f in schema], schema=schema)


def reject(row: Mapping[str, Any], stage: str, reason: Reason, message: str) -> dict[str, Any]:
    """The row as a reject: where it failed, why, and the sentence that says so; nothing heavy travels on with it."""
    return output.reject(light(row), stage, reason, message)


def light(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without pictures."""
    return {**row, "pixels": None, "clip": None, "frames": None}


def result(row: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """A row of STATE with a finished sidecar -> a row of RESULT. ending: of the video's file."""
    facts = json.loads(row["facts"])
    request, timings = facts["request"], facts["timings"]
    return {
        **{name: request[name] for name in RESULT.names if name in request},
        **{name: row[name] for name in ("row", "key", "id", "image", "image_digest", "source_video")},
        "video": f"videos/{row['id']}{ending}",
        "measured_motion_score": facts["motion_score"],
        "measured_motion_bucket": facts["motion_bucket"],
        "psnr_first_frame": facts["psnr_first_frame"],
        "cut_away": facts.get("cut_away"),
        "seconds": timings["sample_seconds"] + timings["decode_seconds"],
        "model_fingerprint": facts["model_fingerprint"],
    }
