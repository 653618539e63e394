"""Rows -> a table of metrics with intervals, the paper's numbers in a separate column, and pictures as PNGs.

The same rows give the same report.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cinemo.metrics import statistics
from pipelines.animate import videos
from pipelines.core import plots, storage
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant

Row = dict[str, Any]
ROUNDS, SET_ROUNDS = 1000, 20  # resamples of the bootstrap: for a mean, and for a distance between sets
SHOWN = 3  # cases on the sheet
SPLITS = 10  # of the inception score
PAPER = "published in the paper (not measured here)"
# Table 1, as printed. Method -> metric -> value.
TABLE_1: dict[str, dict[str, dict[str, float]]] = {
    "ucf101": {
        "I2VGen-XL": {"fvd": 597.42, "is": 18.20, "fid": 42.39},
        "DynamiCrafter": {"fvd": 404.50, "is": 41.97, "fid": 32.35},
        "SEINE": {"fvd": 306.49, "is": 54.02, "fid": 26.00},
        "ConsistI2V": {"fvd": 177.66, "is": 56.22, "fid": 15.74},
        "Cinemo": {"fvd": 168.16, "is": 58.71, "fid": 13.17},
    },
    "msrvtt": {
        "Gen-2": {"fvd": 496.17},
        "I2VGen-XL": {"fvd": 270.78, "clipsim": 0.2541},
        "DynamiCrafter": {"fvd": 219.31, "clipsim": 0.2659},
        "SEINE": {"fvd": 152.63, "clipsim": 0.2774},
        "ConsistI2V": {"fvd": 104.58, "clipsim": 0.2674},
        "Follow-Your-Click": {"fvd": 271.74},
        "Cinemo": {"fvd": 93.51, "clipsim": 0.2858},
    },
}


class Value(NamedTuple):
    """One cell: a metric of a variant, its 95 % interval, the number of clips, and why there is no value."""

    variant: str
    metric: str
    value: float
    low: float
    high: float
    clips: int
    note: str


class Metric(NamedTuple):
    """A line of the table. asked: the --metrics name that selects it. needs: column without which a row is skipped."""

    name: str
    asked: str
    text: str
    needs: str
    # Value computed from rows and real rows; None: the mean of the column, or of lists without their first value.
    of: Callable[[Sequence[Row], Sequence[Row]], float] | None = None
    sets: bool = False  # compares sets with the real clips


def features(rows: Sequence[Row], column: str, width: int) -> np.ndarray:
    """Stack features of clips (clips, width), or of all their frames (clips * N, width)."""
    return np.concatenate([np.asarray(row[column], np.float32).reshape(-1, width) for row in rows])


def frechet(
    column: str, width: int, distance: Callable[..., float] = statistics.frechet_distance
) -> Callable[[Sequence[Row], Sequence[Row]], float]:
    return lambda rows, real: distance(features(real, column, width), features(rows, column, width))


def fidelity(field: str) -> Callable[[Sequence[Row], Sequence[Row]], float]:
    def value(rows: Sequence[Row], real: Sequence[Row]) -> float:
        requested, measured = ([row[name] for row in rows] for name in ("requested_bucket", "measured_bucket"))
        return float(getattr(statistics.motion_fidelity(requested, measured), field))

    return value


def inception(rows: Sequence[Row], real: Sequence[Row]) -> float:
    each = features(rows, "c3d", 101)
    # Shuffled: cases are sorted by name, so those of UCF-101 by class, and a split of few classes scores low.
    return statistics.inception_score(np.random.default_rng(0).permutation(each), SPLITS)[0]


METRICS = (
    Metric("fvd", "fvd", "FVD ↓", "i3d", frechet("i3d", 400), True),
    Metric("fvd_corrected", "fvd", "FVD without the bias of few videos ↓", "i3d",
           frechet("i3d", 400, statistics.frechet_at_infinity), True),
    Metric("fid", "fid", "FID ↓", "inception", frechet("inception", 2048), True),
    Metric("is", "is", "IS ↑", "c3d", inception),
    Metric("clipsim", "clipsim", "CLIPSIM ↑", "clipsim"),
    Metric("clip_consistency", "clipsim", "CLIP consistency ↑", "clip_consistency"),
    Metric("spearman", "motion", "requested and measured bucket, Spearman ↑", "measured_bucket", fidelity("spearman")),
    Metric("bucket_error", "motion", "bucket error, mean absolute ↓", "measured_bucket", fidelity("error")),
    Metric("bucket_bias", "motion", "bucket bias, measured less requested", "measured_bucket", fidelity("bias")),
    Metric("direction", "direction", "direction agrees with the prompt ↑", "agrees"),
    Metric("psnr", "fidelity", "first frame and photo, PSNR in dB ↑", "psnr"),
    Metric("ssim", "fidelity", "first frame and photo, SSIM ↑", "ssim"),
    Metric("lpips", "lpips", "first frame and photo, LPIPS ↓", "lpips"),
    Metric("smoothness", "smoothness", "temporal smoothness ↑", "smoothness"),
    Metric("abruptness", "smoothness", "abruptness ↓", "abruptness"),
    Metric("colour_drift", "colour", "colour drift, pixels, Lab ↓", "colour_drift"),
    Metric("mean_colour_drift", "colour", "colour drift, mean, Lab ↓", "mean_colour_drift"),
    Metric("consistency", "consistency", "consistency along the flow ↑", "consistency"),
)  # fmt: skip


def values(config: EvaluateConfig, variants: Sequence[Variant], rows: Sequence[Row]) -> list[Value]:
    """Compute every cell of the table. A value that cannot be computed from these rows has a note that says why."""
    by_variant = {v.label: [row for row in rows if row["variant"] == v.label] for v in variants}
    real = by_variant[REAL]
    cells = []
    for metric in METRICS:
        if metric.asked not in config.measured:
            continue
        for label, group in by_variant.items():
            measured = [row for row in group if row[metric.needs] is not None]
            reference = [row for row in real if row[metric.needs] is not None]
            if not measured or (metric.sets and label == REAL):
                continue
            cells.append(cell(metric, label, measured, reference))
    return cells


def cell(metric: Metric, label: str, rows: Sequence[Row], real: Sequence[Row]) -> Value:
    """Compute one value with its interval by resampling the cases; the real clips are not resampled."""
    of = metric.of
    if of is None:
        each = np.array([np.mean(v[1:]) if isinstance(v := row[metric.needs], list) else v for row in rows], np.float64)
        low, high = statistics.bootstrap(len(each), lambda places: float(each[places].mean()), ROUNDS)
        return Value(label, metric.name, float(each.mean()), low, high, len(rows), "")
    try:
        value = of(rows, real)
    except ValueError as error:
        return Value(label, metric.name, math.nan, math.nan, math.nan, len(rows), str(error))

    def resampled(places: np.ndarray) -> float:
        try:
            return of([rows[place] for place in places], real)
        except ValueError:
            return math.nan

    low, high = math.nan, math.nan
    if metric.name != "fvd_corrected":  # itself a fit over resamples
        of_set = metric.sets or metric.name == "is"
        rounds, around = (SET_ROUNDS, value) if of_set else (ROUNDS, None)
        low, high = statistics.bootstrap(len(rows), resampled, rounds, around=around)
        low = max(low, 1.0 if metric.name == "is" else 0.0) if of_set else low  # no distance is below 0
    return Value(label, metric.name, value, low, high, len(rows), "")


def published(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """Table 1's numbers on this dataset, by method; empty where it has none."""
    return TABLE_1.get(config.dataset.partition(":")[0], {})


def markdown(
    config: EvaluateConfig,
    variants: Sequence[Variant],
    cells: Sequence[Value],
    counts: Mapping[str, Any],
    size: tuple[int, int],
    fingerprints: Mapping[str, str],
) -> str:
    """The report as text."""
    labels = [variant.label for variant in variants]
    by_place = {(cell.metric, cell.variant): cell for cell in cells}
    paper = published(config).get("Cinemo", {})
    head = ["metric", *labels, *([f"Cinemo, {PAPER}"] if paper else [])]
    lines = [
        f"# Evaluation on {config.dataset}",
        "",
        f"{counts['cases']} videos, {config.num_frames} frames of {size[0]} x {size[1]}, seed {config.seed}. "
        "In brackets: 95 % intervals by bootstrap over the videos. ↑ more is better, ↓ less is better. "
        f"`{REAL}` is the dataset's own clips under the same measures.",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
    ]
    for metric in METRICS:
        if not any(name == metric.name for name, _ in by_place):
            continue
        cells_of = [shown(by_place.get((metric.name, label))) for label in labels]
        column = [f"{paper[metric.name]:g}" if metric.name in paper else "-"] if paper else []
        lines.append(f"| {' | '.join([metric.text, *cells_of, *column])} |")
    notes = [f"- {name} is left out: {why}." for name, why in config.left_out.items()]
    notes += sorted({f"- {cell.metric} of {cell.variant}: {cell.note}." for cell in cells if cell.note})
    if any(cell.metric == "fvd" for cell in cells) and counts["cases"] < 2048:
        notes.append(
            f"- FVD and FID of {counts['cases']} videos are biased upwards; the paper's are of 2,048 and 2,990."
        )
    notes += [f"- {count} rejected: {reason}." for reason, count in counts["rejects"].items()]
    notes += [f"- {model} has fingerprint {mark}." for model, mark in fingerprints.items()]
    if not paper:
        notes.append("- The paper has no numbers on this dataset.")
    lines += ["", *notes]
    if paper:
        lines += ["", f"Table 1, {PAPER}:", "", *table_1(config)]
    return "\n".join(lines) + "\n"


def table_1(config: EvaluateConfig) -> list[str]:
    """Lines of the paper's whole table for this dataset."""
    methods = published(config)
    names = list(dict.fromkeys(name for row in methods.values() for name in row))
    lines = [f"| method | {' | '.join(name.upper() for name in names)} |", f"| --- |{' ---: |' * len(names)}"]
    for method, row in methods.items():
        lines.append(f"| {method} | {' | '.join(f'{row[n]:g}' if n in row else '-' for n in names)} |")
    return lines


def shown(cell: Value | None) -> str:
    """A cell as text; "-" where there is no value."""
    if cell is None or math.isnan(cell.value):
        return "-"
    digits = 1 if abs(cell.value) >= 100 else 2 if abs(cell.value) >= 10 else 3
    text = f"{cell.value:.{digits}f}"
    return text if math.isnan(cell.low) else f"{text} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def parquet(cells: Sequence[Value], config: EvaluateConfig) -> bytes:
    """The table in long form as Parquet, with the paper's numbers as variants marked as published."""
    rows = [cell._asdict() for cell in cells]
    for method, numbers in published(config).items():
        for metric, value in numbers.items():
            empty = {"low": math.nan, "high": math.nan, "clips": 0, "note": PAPER}
            rows.append({"variant": f"{method}, {PAPER}", "metric": metric, "value": value, **empty})
    kinds = [("variant", pa.string()), ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64())]
    schema = pa.schema([*kinds, ("high", pa.float64()), ("clips", pa.int64()), ("note", pa.string())])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer)
    return buffer.getvalue()


def pictures(config: EvaluateConfig, variants: Sequence[Variant], rows: Sequence[Row]) -> dict[str, bytes]:
    """Draw PNGs, by name: motion and abruptness by requested bucket, colour drift by frame, and a sheet of samples."""
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
    """List (requested bucket, mean of a column) in the order of the buckets."""
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
