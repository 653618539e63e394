"""The files of a finished video: itself, thumbnail, spritesheet, and a sidecar that says how it was made.

Every attempt has its own file names, so that concurrent attempts never mix; the job's row says which attempt counts.
"""

import logging
import os
import re
import tempfile
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.animate import videos
from pipelines.core import storage

logger = logging.getLogger("ray.serve")

# File endings by variant. A video in another format than mp4 is the variant of that name; .video.webp is not the
# thumbnail.
ENDINGS = {
    **{"video": ".mp4", "webm": ".webm", "gif": ".gif", "webp": ".video.webp"},
    **{"thumbnail": ".webp", "spritesheet": ".jpg", "sidecar": ".json"},
}
MEDIA = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".jpg": "image/jpeg",
}
MOST_PROBE = 16 << 20  # bytes; frames, whose number is not bounded, take far more than their encoded file
LEAST_PROBE = 1 << 20  # bytes; even a full disk takes files without content
NAME = re.compile(rf"(?P<id>video_\w+)-(?P<attempt>\d+)({'|'.join(map(re.escape, ENDINGS.values()))})")


def name(job_id: str, attempt: int, variant: str) -> str:
    """File name of a variant of an attempt."""
    return f"{job_id}-{attempt}{ENDINGS[variant]}"


def video_variant(request: Mapping[str, Any]) -> str:
    """Variant of a request's video: `video` for an mp4, else its format."""
    kind = request.get("format", "mp4")
    return "video" if kind == "mp4" else kind


def encode(frames: np.ndarray, facts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Encode frames, uint8 (N, H, W, 3): (facts with the measured motion, bytes of the files by variant).

    facts: JSON for the sidecar, with the request.
    """
    facts, request = {**facts, **videos.measured(frames)}, facts["request"]
    files = {
        video_variant(request): videos.video(frames, request["fps"], f".{request.get('format', 'mp4')}"),
        "thumbnail": videos.thumbnail(frames[0]),
        "spritesheet": videos.spritesheet(frames),
        "sidecar": storage.json_bytes(facts),
    }
    return facts, files


def write(output: str, job_id: str, attempt: int, files: dict[str, bytes]) -> None:
    """Write the files of an attempt, the sidecar last. Raises OSError."""
    for variant, data in files.items():
        storage.put(storage.join(output, name(job_id, attempt, variant)), data)
    if storage.is_local(output):  # the names too: the database will say that they are there
        storage.sync(storage.absolute(output))


def check_writable(output: str, size: int) -> None:
    """Check that the output and the temporary folder have room, by writing and deleting a file. Raises OSError.

    size: bytes of each file, from LEAST_PROBE to MOST_PROBE.
    """
    data = os.urandom(min(max(LEAST_PROBE, size), MOST_PROBE))  # zeros may take no room
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
    # Named like a temporary file, so that storage.remove_temporary_files deletes it if this process dies now.
    probe = storage.join(output, f".probe.{uuid.uuid4().hex[:8]}")
    storage.put(probe, data)
    storage.remove(probe)


def remove(output: str, job_id: str, attempt: int) -> None:
    """Delete the files of an attempt, if there are any. Those that cannot be deleted now are left to a later sweep."""
    for variant in ENDINGS:
        try:
            storage.remove(storage.join(output, name(job_id, attempt, variant)))
        except OSError as error:
            logger.warning("not deleted yet: %s", error, extra={"job": job_id})
            return


def attempts(output: str) -> set[tuple[str, int]]:
    """List (job id, attempt) of all files in the output."""
    files = storage.list_files(output, tuple(ENDINGS.values()))
    matches = (NAME.fullmatch(file.rsplit("/", 1)[-1]) for file in files)
    return {(match["id"], int(match["attempt"])) for match in matches if match}
