"""The rows of the animate job: Arrow schemas, their version, ids and keys."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from cinemo.sidecar import Request, Sidecar
from pipelines.core import output
from pipelines.core.output import FAULT, Reason

SCHEMA_VERSION = 1
METHOD_VERSION = "1"  # change it when the same model and settings would give another video

_VERSION = {"cinemo.schema_version": str(SCHEMA_VERSION)}

# A row of OUT/catalog: a task. request is JSON, null if the row has a fault; its motion_bucket is null if it is to be
# measured in the source video.
TASK = pa.schema(
    [
        ("row", pa.int64()),  # its number in the catalog, from 0
        ("key", pa.string()),  # changes when the row does
        ("image", pa.string()),
        ("source_video", pa.string()),  # whose motion the image gets; null for none
        ("request", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ],
    metadata=_VERSION,
)

# A row on its way through the job. Rows without pixels and frames (rejects, finished rows) pass through.
STATE = pa.schema(
    [
        *TASK,
        ("id", pa.string()),
        ("image_digest", pa.string()),
        ("pixels", pa.large_binary()),  # float32 (3, H, W) in [-1, 1], the fitted image
        ("video_digest", pa.string()),
        ("clip", pa.large_binary()),  # uint8 (N, H, W, 3), of the source video
        ("frames", pa.large_binary()),  # uint8 (N, H, W, 3)
        ("facts", pa.string()),  # JSON: the facts known so far; in the end, the sidecar
        ("twin", pa.bool_()),  # another row of this job has the same id, and makes the video
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
        ("lora", pa.string()),  # adapters, PATH:weight, separated by commas; null without
        ("motion_bucket", pa.uint8()),  # requested
        ("seed", pa.int64()),
        ("num_inference_steps", pa.int32()),
        ("guidance_scale", pa.float32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("cut_away", pa.float32()),  # share of the image that no frame shows; null in outputs of earlier versions
        ("num_frames", pa.int32()),
        ("fps", pa.float32()),
        ("measured_motion_score", pa.float32()),
        ("measured_motion_bucket", pa.uint8()),
        ("psnr_first_frame", pa.float32()),  # dB, against the fitted image
        ("seconds", pa.float32()),  # sampling (this video's share of its batch) and decoding
        ("model_fingerprint", pa.string()),
    ],
    metadata=_VERSION,
)

# A row of OUT/rejects: one for each row of the catalog that has no video.
REJECT = pa.schema(
    [
        ("row", pa.int64()),
        ("key", pa.string()),
        ("id", pa.string()),  # null if not known yet
        ("image", pa.string()),
        *FAULT,
    ],
    metadata=_VERSION,
)


def digest(value: Any) -> str:
    """Digest of a JSON value: 32 hexadecimal digits (128 bits), the same on every machine, for ever."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def animation_id(
    image_digest: str, request: Request, made_with: Mapping[str, str], video_digest: str | None = None
) -> str:
    """The id of a video: a digest of all that it depends on. made_with: model fingerprint, precision, format.

    video_digest: of the source video; None if there is none.
    """
    edited = [] if video_digest is None else [video_digest]
    content = dict(request)
    if "lora" in request:  # by their content, wherever the files are
        content["lora"] = [[one["fingerprint"], one["weight"]] for one in request["lora"]]
    return digest([METHOD_VERSION, image_digest, content, dict(made_with), *edited])


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema = STATE) -> pa.Table:
    """Convert rows to a table of a schema: missing names become null, others are dropped."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def reject(row: Mapping[str, Any], stage: str, reason: Reason, message: str) -> dict[str, Any]:
    """Turn a row into a reject with the stage that failed, the reason and a message; its pictures are dropped."""
    return output.reject(light(row), stage, reason, message)


def light(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without pictures."""
    return {**row, "pixels": None, "clip": None, "frames": None}


def result(row: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """Convert a row of STATE with a finished sidecar to a row of RESULT. ending: of the video's file."""
    facts: Sidecar = json.loads(row["facts"])
    timings = facts["timings"]
    return {
        **{name: value for name, value in facts["request"].items() if name in RESULT.names},
        **{name: row[name] for name in ("row", "key", "id", "image", "image_digest", "source_video")},
        "lora": ", ".join(f"{one['path']}:{one['weight']:g}" for one in facts.get("loras", [])) or None,
        "video": f"videos/{row['id']}{ending}",
        "measured_motion_score": facts["motion_score"],
        "measured_motion_bucket": facts["motion_bucket"],
        "psnr_first_frame": facts["psnr_first_frame"],
        "cut_away": facts.get("cut_away"),
        "seconds": timings["sample_seconds"] + timings["decode_seconds"],
        "model_fingerprint": facts["model_fingerprint"],
    }
