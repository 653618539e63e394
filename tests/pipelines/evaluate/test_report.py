"""Rows become a table: means, sets, intervals, and the paper's numbers apart from ours."""

import io
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cinemo.metrics import statistics
from pipelines.evaluate import report
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant
from pipelines.evaluate.rows import ROW

VARIANTS = [Variant(REAL, "", {}), Variant("builtin:tiny", "", {})]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROUNDS", 100)
    monkeypatch.setattr(report, "SET_ROUNDS", 3)


def rows(variant: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows as an evaluation with I3D and CLIP would leave them."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        row = dict.fromkeys(ROW.names)
        row |= {"name": f"n{number}", "variant": variant, "requested_bucket": number % 5, "measured_bucket": number % 4}
        row |= {"clipsim": float(rng.uniform(0.2, 0.3)), "clip_consistency": 0.9, "agrees": bool(number % 2)}
        row |= {"i3d": rng.standard_normal(400).astype(np.float32), "abruptness": float(rng.uniform(1, 2))}
        row |= {"smoothness": 0.5, "mean_colour_drift": [0.0, 1.0, 3.0], "colour_drift": [0.0, 2.0, 4.0]}
        made.append(row)
    return made


def make(dataset: str = "synthetic:12", **changes: Any) -> EvaluateConfig:
    metrics = "fvd,clipsim,motion,direction,smoothness,colour,is"
    return EvaluateConfig(dataset=dataset, output="out", metrics=metrics, i3d="i.pt", clip="c", **changes)


def test_values_are_those_of_the_rows() -> None:
    real, own = rows(REAL, 12, 0), rows("builtin:tiny", 12, 1)
    found = {(c.metric, c.variant): c for c in report.values(make(), VARIANTS, real + own)}
    assert found["clipsim", "builtin:tiny"].value == pytest.approx(np.mean([row["clipsim"] for row in own]))
    expected = statistics.frechet_distance(*(np.stack([row["i3d"] for row in group]) for group in (real, own)))
    assert found["fvd", "builtin:tiny"].value == pytest.approx(expected)
    assert ("fvd", REAL) not in found  # of a set with itself
    assert found["direction", REAL].value == 0.5
    assert found["mean_colour_drift", REAL].value == 2.0  # of the frames after the first
    cell = found["abruptness", "builtin:tiny"]
    assert cell.low < cell.value < cell.high
    assert cell.clips == 12


def test_the_inception_score_does_not_depend_on_the_order_of_the_classes() -> None:
    """Cases come by name, so those of UCF-101 by class: each of ten splits had one class, and the score was 1."""
    by_class = [{"c3d": np.eye(101)[number // 10].tolist()} for number in range(100)]
    assert report.inception(by_class, []) > 5


def test_too_few_clips_are_a_note_and_not_a_number() -> None:
    text = table([*rows(REAL, 2, 0), *rows("builtin:tiny", 1, 1)])
    assert "- fvd of builtin:tiny: a Frechet distance needs at least 2 generated items, got features (1, 400)." in text
    assert "- spearman of builtin:tiny: motion fidelity needs at least 3 clips" in text


def table(measured: list[dict[str, Any]], dataset: str = "synthetic:12") -> str:
    config = make(dataset)
    cells = report.values(config, VARIANTS, measured)
    counts = {"cases": 12, "rejects": {"corrupt": 2}}
    return report.markdown(config, VARIANTS, cells, counts, (128, 192), {"builtin:tiny": "abc"})


def test_what_is_left_out_and_rejected_is_said() -> None:
    text = table([*rows(REAL, 12, 0), *rows("builtin:tiny", 12, 1)])
    assert "- is is left out: no weights: pass --c3d." in text
    assert "- 2 rejected: corrupt." in text
    assert "- builtin:tiny has fingerprint abc." in text
    assert "The paper has no numbers on this dataset." in text
    assert "FVD and FID of 12 videos are biased upwards" in text


def test_the_paper_s_numbers_are_in_a_column_of_their_own() -> None:
    text = table([*rows(REAL, 12, 0), *rows("builtin:tiny", 12, 1)], dataset="msrvtt:/x")
    head = next(line for line in text.splitlines() if line.startswith("| metric"))
    assert head.split("|")[-2].strip() == "Cinemo, published in the paper (not measured here)"
    line = next(line for line in text.splitlines() if line.startswith("| FVD ↓"))
    assert line.split("|")[-2].strip() == "93.51"
    assert "| Follow-Your-Click | 271.74 | - |" in text
    written = pq.read_table(io.BytesIO(report.parquet([], make("msrvtt:/x")))).to_pylist()
    assert {"published in the paper (not measured here)"} == {row["note"] for row in written}


def test_the_same_rows_give_the_same_report() -> None:
    measured = [*rows(REAL, 12, 0), *rows("builtin:tiny", 12, 1)]
    assert table(measured) == table(measured)
