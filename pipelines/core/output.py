"""A resumable output: its settings, parts that are written once, rejects, and the summary.

All jobs share one layout. OUT/settings.json holds the settings that the output was made with; a job with others is
refused. Rows are in Parquet files named by their content, so a task that runs twice writes one file. OUT/rejects says
why rows failed. A last file marks the job as finished; it is removed while there is work to do. A job finds
what is already done by reading the keys of these rows (dataset/parts.py, animate/listing.py, evaluate/rows.py).
"""

import enum
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cinemo.errors import redact
from pipelines.core import storage, tracking


class Reason(enum.StrEnum):
    """Why a row has no result. No job writes another reason; docs/operations.md says which job gives which."""

    BAD_ROW = "bad_row"  # the table is broken at this row, or names no image
    BAD_CAPTION = "bad_caption"
    BAD_PROMPT = "bad_prompt"
    BAD_SETTING = "bad_setting"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NO_IMAGE = "no_image"
    NO_VIDEO = "no_video"
    UNSUPPORTED = "unsupported"  # a codec that this build of FFmpeg cannot decode
    TOO_SHORT = "too_short"  # the video
    WRONG_ASPECT = "wrong_aspect"  # the image is not an edited frame of the video
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    CORRUPT = "corrupt"
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # the worker process died, each time it was tried
    SCENE_CUT = "scene_cut"
    FAILED = "failed"  # the model or the encoder raised
    INTERNAL = "internal"  # a bug in our code, kept as a reject so that one row cannot stop a job of millions


# Last columns of every reject, after those that name its row.
FAULT = [("stage", pa.string()), ("reason", pa.string()), ("message", pa.string())]


def reject(row: Mapping[str, Any], stage: str, reason: Reason, message: str) -> dict[str, Any]:
    """Make a reject of a row: the stage at which it failed, the reason, and a message."""
    return {**row, "stage": stage, "reason": reason.value, "message": redact(message)}


@dataclass(frozen=True)
class Output:
    """The output of a job: a folder or URI, absolute. last: the file whose presence means that the job is finished."""

    uri: str
    last: str = "summary.json"

    def place(self, *names: str) -> str:
        """The URI of a file or folder of the output."""
        return storage.join(self.uri, *names)

    def check(
        self,
        identity: Mapping[str, Any],
        flags: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Raise ValueError if the output was made with other settings, naming the flag, both values and the remedy.

        identity: all settings that an output depends on, as `claim` stores them. flags: setting -> flag, where the
        names differ. defaults: what outputs of earlier versions, which do not name these settings, were made with.
        """
        stored = storage.read_json(self.place("settings.json"))
        if stored is None:
            return
        stored = {**(defaults or {}), **stored}
        for name, value in json.loads(storage.json_bytes(identity)).items():
            if stored.get(name) == value:
                continue
            if name == "job":
                raise ValueError(f"--output {self.uri} was made by another job; give another --output")
            flag = (flags or {}).get(name) or f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag}: {self.uri} was made with {name} {stored.get(name)!r}, this job has {value!r}; "
                "give the old value, or another --output"
            )

    @property
    def is_finished(self) -> bool:
        """Whether the last file exists. Rows may have been added to the input since."""
        return storage.exists(self.place(self.last))

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Begin to work: store the settings, and mark the output as unfinished."""
        storage.put_json(self.place("settings.json"), identity)
        for name in {self.last, "summary.json"}:
            storage.remove(self.place(name))

    def show(self, name: str, data: bytes, log: tracking.Log) -> None:
        """Write a picture or a page to the output, and log it to MLflow."""
        storage.put_changed(self.place(name), data)
        log.picture(name, data)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary; call it last."""
        storage.put_json(self.place("summary.json"), summary)


def write_part(table: pa.Table, folder: str, named: bytes | None = None, group: int | None = None) -> str:
    """Write a table to a file named by a hash of its content, replacing a file of that name; returns its URI.

    named: bytes to hash for the name, such as the rows' keys; default: the file itself. group: rows that a reader loads
    at a time; default: all.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group, compression="zstd")
    data = buffer.getvalue()
    uri = storage.join(folder, f"part-{hashlib.sha256(data if named is None else named).hexdigest()[:32]}.parquet")
    if named is not None or not storage.exists(uri):
        storage.put(uri, data)
    return uri
