"""What people see of a finished catalog: a page that opens from disk, and a sheet of some videos.

Knows the listing and pictures. Changes nothing. The page (gallery.html) holds its data and its script, asks no network
for anything, and takes pictures and videos from the folder beside it; prompts reach it as data, never as markup.
"""

import functools
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.animate import listing, videos
from pipelines.core import storage

MOST = 20_000  # rows of the catalog that the page lists: some megabytes
COLUMNS = (
    "row", "id", "image", "prompt", "motion_bucket", "measured_motion_bucket", "measured_motion_score", "seed",
    "psnr_first_frame",
)  # fmt: skip
SHOWN = 6  # videos on the sheet
_DIGITS = {"measured_motion_score": 4, "psnr_first_frame": 2}


def page(output: str, counts: Mapping[str, Any], ending: str) -> bytes:
    """index.html of the videos of a catalog's first rows. counts: of the summary. ending: of the videos' files."""
    rows = sorted(_cells(row) for row in listing.results(output, COLUMNS, MOST))
    data = {"columns": COLUMNS, "rows": rows, "ending": ending, "total": counts["rows"], "rejected": counts["rejected"]}
    text = json.dumps(data, separators=(",", ":"))
    for sign in "<>&":  # no text of a stranger may end the script that holds it
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return _template().replace("__DATA__", text).encode()


def _cells(row: dict[str, Any]) -> list[Any]:
    row["image"] = storage.base_name(row["image"])
    row["seed"] = str(row["seed"])  # a script's numbers are exact to 2**53
    return [round(row[name], _DIGITS[name]) if name in _DIGITS else row[name] for name in COLUMNS]


def sheet(output: str, ending: str) -> bytes | None:
    """A PNG of some videos, from the least motion to the most; None where there are none."""
    from cinemo.sheet import contact_sheet

    rows = []
    for row in _examples(output):
        data = storage.read(storage.join(output, row["video"]))
        if data is None:
            continue
        label = f"asked {row['motion_bucket']}, measured {row['measured_motion_bucket']}: {row['prompt'][:90]}"
        frames = videos.read(data, row["num_frames"], ending)
        rows.append((label, frames[:, : row["height"], : row["width"]]))
    if not rows:
        return None
    rows = [pair for pair in rows if pair[1].shape[1:3] == rows[0][1].shape[1:3]]  # a sheet has one aspect
    buffer = io.BytesIO()
    contact_sheet(rows).save(buffer, format="PNG")
    return buffer.getvalue()


def _examples(output: str) -> Iterator[dict[str, Any]]:
    """Of the first rows, some that are spread over the motion measured; no video twice."""
    first = {
        row["id"]: row for row in listing.results(output, (*COLUMNS, "video", "num_frames", "height", "width"), MOST)
    }
    rows = sorted(first.values(), key=lambda row: (-row["measured_motion_score"], row["id"]))
    count = min(SHOWN, len(rows))
    yield from (rows[round(place * (len(rows) - 1) / max(1, count - 1))] for place in range(count))


@functools.cache
def _template() -> str:
    return (Path(__file__).parent / "gallery.html").read_text()
