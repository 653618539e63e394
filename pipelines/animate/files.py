"""The files of a video: OUT/videos/ID.mp4 (or .webm, ...), its thumbnail ID.thumb.webp, and its sidecar ID.json.

The sidecar is written last: if it exists, and the video has the length that it states, the video is finished. Until
then OUT/latents/ID.npy keeps the sampled latents, so that sampling is not repeated after a later failure.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from cinemo.sidecar import Sidecar
from pipelines.animate import videos
from pipelines.animate.records import reject
from pipelines.core import storage
from pipelines.core.output import Reason

THUMBNAIL = ".thumb.webp"
THUMBNAIL_WIDTH = 256  # pixels


def sidecar(output: str, name: str, ending: str) -> Sidecar | None:
    """Read the sidecar of the video with this id; None if the video is not finished, or has another length."""
    found = storage.read_json(storage.join(output, "videos", f"{name}.json"))
    assert found is None or isinstance(found, dict), f"videos/{name}.json is no sidecar"
    if found is not None and "file" in found:  # sidecars of earlier versions state no length
        length = storage.size(storage.join(output, "videos", name + ending))
        found = found if length == found["file"]["bytes"] else None
    return cast(Sidecar | None, found)


def keep(output: str, name: str, latents: np.ndarray) -> None:
    """Keep a video's residual latents, float32 (C, F, h, w), until it is written. Raises OSError."""
    buffer = io.BytesIO()
    np.save(buffer, latents, allow_pickle=False)
    storage.put(_latents(output, name), buffer.getvalue())


def kept(output: str, name: str) -> np.ndarray | None:
    """Read a video's kept residual latents; None when there are none."""
    data = storage.read(_latents(output, name))
    return None if data is None else np.load(io.BytesIO(data), allow_pickle=False)


def write(row: Mapping[str, Any], output: str, ending: str) -> dict[str, Any]:
    """Write the files of a row with frames; returns the row without frames, with `made` and its sidecar as facts.

    Returns a reject row if encoding fails. Raises OSError when storage or temporary folder fail: not the row's fault.
    """
    facts, name = json.loads(row["facts"]), row["id"]
    request = facts["request"]
    began = time.perf_counter()
    try:
        shape = (request["num_frames"], request["height"], request["width"], 3)
        frames = np.frombuffer(row["frames"], np.uint8).reshape(shape)
        data = {ending: videos.video(frames, request["fps"], ending)}
        data[THUMBNAIL] = videos.thumbnail(frames[0], THUMBNAIL_WIDTH)
        facts |= videos.measured(frames)
        facts["file"] = {"bytes": len(data[ending]), "sha256": hashlib.sha256(data[ending]).hexdigest()}
        facts["timings"]["encode_seconds"] = round(time.perf_counter() - began, 4)
    except OSError:
        raise
    except Exception as error:
        return reject(row, "write", Reason.FAILED, f"{type(error).__name__}: {error}")
    data[".json"] = storage.json_bytes(facts)
    for suffix, content in data.items():
        storage.put(storage.join(output, "videos", name + suffix), content)
    storage.remove(_latents(output, name))
    return {**row, "frames": None, "facts": json.dumps(facts), "made": True}


def forget_latents(output: str) -> None:
    """Remove latents of finished videos, which a killed job has left."""
    for uri in storage.list_files(storage.join(output, "latents"), (".npy",)):
        name = uri.rsplit("/", 1)[-1].removesuffix(".npy")
        if storage.exists(storage.join(output, "videos", f"{name}.json")):
            storage.remove(uri)


def _latents(output: str, name: str) -> str:
    return storage.join(output, "latents", f"{name}.npy")
