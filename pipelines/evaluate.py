"""Models on a dataset -> rows of numbers (evaluation/measure.py) -> a report (evaluation/report.py).

Knows what a finished evaluation is, and how to get there from whatever is left of an earlier try: a row is known by an
id that its case, model and settings determine, so the same command finishes a job that was killed at any moment, a
further model adds its own rows alone, and a finished job changes no file. A reject is a result: delete OUT/rejects to
have them tried again.
"""

import functools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines import models, storage, tracking
from pipelines.evaluation import config, datasets, rows
from pipelines.evaluation.config import REAL, EvaluateConfig, Variant
from pipelines.progress import Progress, to_stderr

if TYPE_CHECKING:  # seconds to import, and `--help` needs neither
    import ray.data

    from pipelines.evaluation import report

__all__ = ["EvaluateConfig", "check", "run"]

ROWS_PER_FILE = 8  # a kill makes these do again at most, and what each process has under way


class Evaluator:
    """One process of one model: cases under the variants that are left -> rows, one at a time."""

    def __init__(self, settings: EvaluateConfig, model: str, size: tuple[int, int]) -> None:
        from pipelines import clips
        from pipelines.evaluation import animators, measure

        device = "cuda" if settings.gpus else "cpu"
        self.measure = measure.measure
        self.config, self.size = settings, size
        self.animate = None if model == REAL else animators.load(model, settings, device)
        self.nets = measure.Networks(settings, device)
        self.run = clips.in_sandbox(settings.clip_timeout)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Cases as JSON -> a table of schema ROW for each."""
        for text in block["case"].to_pylist():
            case = json.loads(text)
            variant = Variant(*case["variant"])
            row = self.measure(case, variant, self.animate, self.nets, self.config, self.size, self.run)
            yield pa.Table.from_pylist([{name: row.get(name) for name in rows.ROW.names}], schema=rows.ROW)


def write_block(block: pa.Table, output: str) -> pa.Table:
    """Rows -> files; returns how many, and how many of them are rejects."""
    rows.write(block.to_pylist(), output)
    return pa.table({"rows": [block.num_rows], "rejects": [block.num_rows - block["reason"].null_count]})


def build(
    settings: EvaluateConfig, model: str, cases: list[dict[str, Any]], size: tuple[int, int]
) -> "ray.data.Dataset":
    """The dataflow of one model, lazily. Models go one after another: two large ones may not fit beside each other."""
    import ray.data

    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = settings.gpus or settings.workers or cpus

    # 1. A block a few cases: a slow one holds up nobody for long.
    table = pa.table({"case": [json.dumps(case) for case in cases]})
    step = max(1, min(4, len(cases) // (2 * workers)))
    waiting = ray.data.from_arrow([table.slice(first, step) for first in range(0, len(cases), step)])

    # 2. Read, animate and measure in one process, because frames are large; a fixed pool, because models load slowly.
    measured = waiting.map_batches(
        Evaluator,
        fn_constructor_args=(settings, model, size),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, -(-len(cases) // step))),
        num_gpus=1 if settings.gpus else 0,
        num_cpus=0.8,
    )

    # 3. Files, each of a few rows. It mostly waits for storage.
    return measured.map_batches(
        write_block,
        fn_args=(settings.output,),
        batch_size=ROWS_PER_FILE,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=1),
        num_cpus=0.1,
    )


def check(settings: EvaluateConfig) -> None:
    """Refuse what cannot work, before a cluster is touched: raises ValueError for dataset, models, weights, output."""
    from cinemo.video import VIDEO_SUFFIXES
    from pipelines.evaluation.measure import Networks

    settings = config.placed(settings)
    if not datasets.read(settings.dataset, settings.limit, settings.seed):
        raise ValueError(f"--dataset {settings.dataset}: it lists no video")
    if len(set(settings.model)) < len(settings.model):
        raise ValueError(f"--model {' '.join(settings.model)}: one model is named twice")
    config.check_output(settings)
    size = config.frame_size(settings)
    for model in settings.model:
        kind = config.scheme(model)
        if kind == "cinemo":
            fits(model, settings, size)
        elif kind == REAL:
            raise ValueError(f"--model {model}: the dataset's own clips are measured anyway")
        elif kind == "videos" and not storage.list_files(model.partition(":")[2], VIDEO_SUFFIXES):
            raise ValueError(f"--model {model}: there is no video in it")
    Networks(settings, "cpu")


def fits(model: str, settings: EvaluateConfig, size: tuple[int, int]) -> None:
    """Raise ValueError when a Cinemo model does not take what is compared."""
    from cinemo.arguments import check_length, check_size
    from cinemo.sampling import SCHEDULERS

    facts = models.look_up(model)
    check_size(*size, facts.factor, facts.card.sizes)
    check_length(settings.num_frames, facts.card.lengths)
    named = [settings.scheduler, *(v.settings.get("scheduler") for v in config.variants(settings))]
    for name in named:
        if name is not None and name not in SCHEDULERS:
            raise ValueError(f"--scheduler {name} is unknown; use {', '.join(SCHEDULERS)}")


def plan(settings: EvaluateConfig) -> dict[str, list[dict[str, Any]]]:
    """Model -> its cases under each of its variants, with ids; the real clips are a model too."""
    cases = datasets.read(settings.dataset, settings.limit, settings.seed)
    shared = json.dumps(config.settings(settings), sort_keys=True)
    wanted: dict[str, list[dict[str, Any]]] = {}
    for variant in config.variants(settings):
        is_cinemo = config.scheme(variant.model) == "cinemo"
        mark = models.look_up(variant.model).fingerprint if is_cinemo else variant.model
        wanted.setdefault(variant.model, []).extend(
            {**case, "id": rows.row_id(case, variant.name, mark, shared), "variant": variant} for case in cases
        )
    return wanted


def run(settings: EvaluateConfig) -> dict[str, Any]:
    """Do the job, or what is left of it; returns the summary. Needs a running Ray; raises ValueError as check does."""
    from pipelines.evaluation import figures, report

    settings = config.placed(settings)
    check(settings)
    output, began = settings.output, time.monotonic()
    place = functools.partial(storage.join, output)
    size, wanted = config.frame_size(settings), plan(settings)
    with tracking.start("evaluate", output, settings.tracking_uri, settings.model_dump()) as log:
        storage.put_json(place("settings.json"), config.settings(settings))
        new = work(settings, wanted, size)
        ids = [case["id"] for cases in wanted.values() for case in cases]
        measured, rejects = rows.read(output, ids)
        if len(measured) + len(rejects) < len(set(ids)):
            raise RuntimeError(f"{len(set(ids)) - len(measured) - len(rejects)} rows left no trace in {output}")
        reasons = Counter(row["reason"] for row in rejects)
        counts = {"cases": len(wanted[REAL]), "rows": len(measured), "rejects": dict(sorted(reasons.items()))}
        variants = config.variants(settings)
        cells = report.values(settings, variants, measured)
        marks = fingerprints(settings)
        text = report.markdown(settings, variants, cells, counts, size, marks)
        storage.put_changed(place("report.md"), text.encode())
        storage.put_changed(place("report.parquet"), report.parquet(cells, settings))
        pictures = figures.pictures(settings, variants, measured)
        for name, picture in pictures.items():
            storage.put_changed(place(name), picture)
        for name, data in {"report.md": text.encode(), **pictures}.items():
            log.picture(name, data)
        log.metrics({f"{cell.metric}/{tag(cell.variant)}": cell.value for cell in cells if cell.value == cell.value})
        for mark in marks.values():
            log.came_from("train", tracking.FINGERPRINT, mark)
        summary = {
            "job": "evaluate",
            "output": output,
            "report": place("report.md"),
            "counts": counts,
            "model_fingerprints": marks,
            "left_out": settings.left_out,
            "metrics": {v.label: {c.metric: rounded(c) for c in cells if c.variant == v.label} for v in variants},
            "too_many_rejects": len(rejects) > settings.max_reject_fraction * len(ids),
        }
        now = {"new_rows": new, "run_id": log.run_id, "seconds": round(time.monotonic() - began, 2)}
        if new or not storage.exists(place("summary.json")):  # a job that had nothing to do changes no file
            storage.put_json(place("summary.json"), summary | now)
    print(text, file=sys.stderr)
    return summary | now


def fingerprints(settings: EvaluateConfig) -> dict[str, str]:
    """Cinemo models as users wrote them -> their fingerprints."""
    own = [model for model in settings.model if config.scheme(model) == "cinemo"]
    return {models.plain(model): models.look_up(model).fingerprint for model in own}


def work(settings: EvaluateConfig, wanted: dict[str, list[dict[str, Any]]], size: tuple[int, int]) -> int:
    """Measure what is not done yet, model by model; returns how many rows are new."""
    done = rows.done(settings.output)
    total = sum(len(cases) for cases in wanted.values())
    left = {model: [case for case in cases if case["id"] not in done] for model, cases in wanted.items()}
    fresh = sum(len(cases) for cases in left.values())
    progress = Progress("evaluate", "clips", total, began=total - fresh)
    for model, cases in left.items():
        if not cases:
            continue
        to_stderr(f"evaluate  {models.plain(model)}: {len(cases)} clips")
        for part in build(settings, model, cases, size).iter_rows():
            progress.add(part["rows"])
    return fresh


def tag(label: str) -> str:
    """A variant as a part of a metric's name in MLflow, which takes few characters; of a path its last name."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in label.rsplit("/", 1)[-1])


def rounded(cell: "report.Value") -> list[float | None]:
    """[value, low, high] for the summary; null where there is none."""
    return [None if number != number else round(number, 6) for number in (cell.value, cell.low, cell.high)]
