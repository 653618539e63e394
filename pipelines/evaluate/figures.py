"""Rows -> plots by motion bucket and by frame, and a sheet of samples, as PNGs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.animate import videos
from pipelines.core import plots, storage
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant

Row = dict[str, Any]
SHOWN = 3  # cases on the sheet


def pictures(config: EvaluateConfig, variants: Sequence[Variant], rows: Sequence[Row]) -> dict[str, bytes]:
    """PNGs by name: motion by requested bucket, colour drift by frame, abruptness by bucket, and a sheet of samples."""
    by_label = {v.label: [row for row in rows if row["variant"] == v.label] for v in variants}
    by_label = {label: group for label, group in by_label.items() if group}
    animated = {label: group for label, group in by_label.items() if label != REAL}
    images = {}
    if animated and "motion" in config.measured:
        images["motion.png"] = plots.lines(
            {label: by_bucket(group, "measured_bucket") for label, group in animated.items()},
            "requested motion bucket", "measured motion bucket", diagonal=True,
        )  # fmt: skip
    if by_label and "smoothness" in config.measured:
        series = {label: by_bucket(group, "abruptness") for label, group in by_label.items()}
        images["abruptness.png"] = plots.lines(series, "requested motion bucket", "abruptness")
    if by_label and "colour" in config.measured:
        drifts = {
            label: list(enumerate(np.mean([row["mean_colour_drift"] for row in group], axis=0).tolist()))
            for label, group in by_label.items()
        }
        images["colour_drift.png"] = plots.lines(drifts, "frame", "mean colour from the first frame, CIE Lab")
    if (sheet := samples(config, by_label)) is not None:
        images["sheet.png"] = sheet
    return images


def by_bucket(rows: Sequence[Row], column: str) -> list[tuple[float, float]]:
    """(requested bucket, mean of a column), in the order of the buckets."""
    buckets = sorted({row["requested_bucket"] for row in rows})
    return [(b, float(np.mean([row[column] for row in rows if row["requested_bucket"] == b]))) for b in buckets]


def samples(config: EvaluateConfig, by_label: Mapping[str, Sequence[Row]]) -> bytes | None:
    """Draw some cases, spread over the requested buckets, under every variant, as a PNG; None if there are none."""
    from cinemo.sheet import sheet_png

    by_name = {label: {row["name"]: row for row in group} for label, group in by_label.items()}
    named = {name: row for name, row in by_name.get(REAL, {}).items() if all(name in rows for rows in by_name.values())}
    order = sorted(named, key=lambda name: (named[name]["requested_bucket"], name))
    if not order:
        return None
    chosen = [order[round(place)] for place in np.linspace(0, len(order) - 1, min(SHOWN + 1, len(order)))[1:]] or order
    rows = []
    for name in dict.fromkeys(chosen):
        for label, group in by_name.items():
            row = group[name]
            data = storage.read(storage.join(config.output, row["video"]))
            if data is not None:
                buckets = f"bucket {row['requested_bucket']}, {row['measured_bucket']} measured"
                text = f'{label}: {buckets}, "{row["prompt"][:60]}"'
                rows.append((text, videos.read(data, config.num_frames)))
    return sheet_png(rows)
