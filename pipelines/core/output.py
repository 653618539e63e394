"""An output that can be resumed: what it was made with, parts that are written once, rejects, and its summary.

Every job leaves the same trace. OUT/settings.json says what the output was made with, and a job with anything else is
refused. Rows are in Parquet files that are named by what is in them, so a task that runs twice writes one file. What a
row failed of stands in OUT/rejects. A last file says that the job is finished; it goes while there is work to do.
"""

import enum
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import storage, tracking


class Reason(enum.StrEnum):
    """Why there is no result for a row. Closed: readers may list all of them."""

    BAD_ROW = "bad_row"  # the table is broken there, or names no image
    BAD_CAPTION = "bad_caption"
    BAD_PROMPT = "bad_prompt"
    BAD_SETTING = "bad_setting"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    NO_IMAGE = "no_image"
    NO_VIDEO = "no_video"
    UNSUPPORTED = "unsupported"  # a codec that this build of FFmpeg cannot decode
    TOO_SHORT = "too_short"  # the video
    WRONG_ASPECT = "wrong_aspect"  # the image is no edited frame of the video
    TOO_LARGE = "too_large"
    TOO_SMALL = "too_small"
    CORRUPT = "corrupt"
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # the process that worked on it died, each time it was tried
    SCENE_CUT = "scene_cut"
    FAILED = "failed"  # the model or the encoder raised
    INTERNAL = "internal"  # a fault of ours, kept as a row so that one row cannot stop a job of millions


# What every reject says, after the columns that name its row.
FAULT = [("stage", pa.string()), ("reason", pa.string()), ("message", pa.string())]


def reject(row: Mapping[str, Any], stage: str, reason: Reason, message: str) -> dict[str, Any]:
    """The row as a reject: where it failed, why, and the sentence that says so."""
    return {**row, "stage": stage, "reason": reason.value, "message": message}


@dataclass(frozen=True)
class Output:
    """The output of a job: a folder or URI, absolute. last: the file that is there when the job is finished."""

    uri: str
    last: str = "summary.json"

    def place(self, *names: str) -> str:
        """The URI of a file or folder of the output."""
        return storage.join(self.uri, *names)

    def check(self, identity: Mapping[str, Any], flags: Mapping[str, str] | None = None) -> None:
        """Raise ValueError when the output was made with something else, naming the flag, both values and the remedy.

        identity: all that an output is made with, as `claim` stores it. flags: of what is not named after its flag.
        """
        found = storage.read_json(self.place("settings.json"))
        for name, value in identity.items():
            if found is None or found.get(name) == value:
                continue
            if name == "job":
                raise ValueError(f"--output {self.uri} was made by another job; give another --output")
            flag = (flags or {}).get(name) or f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag}: {self.uri} was made with {name} {found.get(name)!r}, this job has {value!r}; "
                "give the old value, or another --output"
            )

    @property
    def is_finished(self) -> bool:
        """Whether a job came to its end here, which says nothing of rows that were added since."""
        return storage.exists(self.place(self.last))

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Begin to work: from now on the output is made with this, and is not finished."""
        storage.put_json(self.place("settings.json"), identity)
        for name in {self.last, "summary.json"}:
            storage.remove(self.place(name))

    def show(self, name: str, data: bytes, log: tracking.Log) -> None:
        """Write a picture or a page for people, and log it."""
        storage.put_changed(self.place(name), data)
        log.picture(name, data)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, last of all."""
        storage.put_json(self.place("summary.json"), summary)


def write_part(table: pa.Table, folder: str, named: bytes | None = None, group: int | None = None) -> str:
    """Write a table whole, under a name that stands for its rows; returns its URI. One that is there is replaced.

    named: what the name is a hash of, such as the keys of the rows; default: the file itself. group: rows that a reader
    loads at a time; default: all.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group, compression="zstd")
    data = buffer.getvalue()
    uri = storage.join(folder, f"part-{hashlib.sha256(data if named is None else named).hexdigest()[:32]}.parquet")
    if named is not None or not storage.exists(uri):
        storage.put(uri, data)
    return uri
