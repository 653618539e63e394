"""Gallery of a finished catalog: a page that opens from disk, and a sheet of some videos.

The page (gallery.html) contains its data and script, loads nothing from a network, and takes pictures and videos from
the folder beside it. Prompts reach it as data, never as markup.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.animate import listing, videos
from pipelines.core import storage

MOST = 20_000  # most rows of the catalog on the page: some megabytes
COLUMNS = (
    "row", "id", "image", "prompt", "motion_bucket", "measured_motion_bucket", "measured_motion_score", "seed",
    "psnr_first_frame",
)  # fmt: skip
SHOWN = 6  # videos on the sheet
_DIGITS = {"measured_motion_score": 4, "psnr_first_frame": 2}


def page(output: str, counts: Mapping[str, Any], ending: str) -> bytes:
    """Create index.html, with the videos of a catalog's first rows. counts: the summary's. ending: of video files."""
    rows = sorted(_cells(row) for row in listing.results(output, COLUMNS, MOST))
    data = {"columns": COLUMNS, "rows": rows, "ending": ending, "total": counts["rows"], "rejected": counts["rejected"]}
    text = json.dumps(data, separators=(",", ":"))
    for sign in "<>&":  # so that no prompt or name can end the script that holds it
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return _template().replace("__DATA__", text).encode()


def _cells(row: dict[str, Any]) -> list[Any]:
    row["image"] = storage.base_name(row["image"])
    row["seed"] = str(row["seed"])  # JavaScript's numbers are exact only up to 2**53
    return [round(row[name], _DIGITS[name]) if name in _DIGITS else row[name] for name in COLUMNS]


def sheet(output: str, ending: str) -> bytes | None:
    """Draw a PNG of some videos, from the least motion to the most; None if there are none."""
    from cinemo.sheet import sheet_png

    rows = []
    for row in _examples(output):
        data = storage.read(storage.join(output, row["video"]))
        if data is None:
            continue
        label = f"asked {row['motion_bucket']}, measured {row['measured_motion_bucket']}: {row['prompt'][:90]}"
        frames = videos.read(data, row["num_frames"], ending)
        rows.append((label, frames[:, : row["height"], : row["width"]]))
    return sheet_png([row for row in rows if row[1].shape[1:3] == rows[0][1].shape[1:3]])  # a sheet has one frame size


def _examples(output: str) -> Iterator[dict[str, Any]]:
    """Yield some of the first rows, spread evenly over the ranking by measured motion, without repeated videos."""
    first = {
        row["id"]: row for row in listing.results(output, (*COLUMNS, "video", "num_frames", "height", "width"), MOST)
    }
    rows = sorted(first.values(), key=lambda row: (-row["measured_motion_score"], row["id"]))
    count = min(SHOWN, len(rows))
    yield from (rows[round(place * (len(rows) - 1) / max(1, count - 1))] for place in range(count))


@functools.cache
def _template() -> str:
    return (Path(__file__).parent / "gallery.html").read_text()
