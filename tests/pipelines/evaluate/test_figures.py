"""Pictures of rows: a line for each model, a row of the sheet for each case and variant."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.animate import videos
from pipelines.core import storage
from pipelines.evaluate import report
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant
from pipelines.evaluate.rows import ROW

VARIANTS = [Variant(REAL, "", {}), Variant("m", "", {})]


def rows(output: Path, count: int) -> list[dict[str, Any]]:
    made = []
    for variant in VARIANTS:
        for number in range(count):
            name = f"videos/{variant.label}/n{number}.mp4"
            frames = np.full((4, 64, 96, 3), 40 * number, np.uint8)
            storage.put(str(output / name), videos.video(frames, 8))
            row = dict.fromkeys(ROW.names)
            row |= {"name": f"n{number}", "variant": variant.label, "video": name, "requested_bucket": number}
            row |= {"measured_bucket": number // 2, "abruptness": 1.0, "prompt": "x"}
            row |= {"mean_colour_drift": [0.0, 1.0, 2.0, 3.0]}
            made.append(row)
    return made


def config(output: Path) -> EvaluateConfig:
    return EvaluateConfig(dataset="synthetic:5", output=str(output), num_frames=4)


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_there_is_a_plot_for_each_measure_and_a_sheet(tmp_path: Path) -> None:
    found = report.pictures(config(tmp_path), VARIANTS, rows(tmp_path, 5))
    assert set(found) == {"motion.png", "abruptness.png", "colour_drift.png", "sheet.png"}
    one_case = report.pictures(config(tmp_path), VARIANTS, [r for r in rows(tmp_path, 5) if r["name"] == "n4"])
    height, less = size_of(found["sheet.png"])[1], size_of(one_case["sheet.png"])[1]
    assert (height - 6) == 3 * (less - 6)  # three cases in place of one, under a margin


def test_means_are_by_requested_bucket(tmp_path: Path) -> None:
    some = [{"requested_bucket": 3, "x": 1.0}, {"requested_bucket": 1, "x": 5.0}, {"requested_bucket": 3, "x": 2.0}]
    assert report.by_bucket(some, "x") == [(1, 5.0), (3, 1.5)]


def test_a_case_that_a_model_lacks_is_not_on_the_sheet(tmp_path: Path) -> None:
    made = [row for row in rows(tmp_path, 2) if (row["variant"], row["name"]) != ("m", "n1")]
    by_variant = {label: [row for row in made if row["variant"] == label] for label in (REAL, "m")}
    sheet = report.samples(config(tmp_path), by_variant)
    assert sheet is not None
    assert size_of(sheet)[1] == 6 + 2 * (22 + 128 + 6)
    assert report.samples(config(tmp_path), {REAL: by_variant[REAL], "m": []}) is None
