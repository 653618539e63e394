"""Models on a dataset -> rows of numbers (measure.py) -> a report (report.py).

A row's id is determined by its case, model and settings. So the same command finishes a job that was killed at any
moment, a further model adds only its own rows, and repeating a finished job changes no file. A reject is a result:
delete OUT/rejects to have them tried again.
"""

import functools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from cinemo import checkpoint
from cinemo.card import DEFAULT_SIZE
from cinemo.motion import SCORE_DEFINITION
from cinemo.sidecar import Lora
from cinemo.video import SAMPLING_VERSION
from pipelines.animate import requested_adapters
from pipelines.animate.request import SettingError
from pipelines.core import lease, models, storage, tracking
from pipelines.core.output import Output
from pipelines.core.progress import Progress, to_stderr
from pipelines.evaluate import datasets, rows
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant, scheme, variants

if TYPE_CHECKING:  # seconds to import, and `--help` needs neither
    import ray.data

    from pipelines.evaluate import report


SCHEMA_VERSION = 1
ROWS_PER_FILE = 8  # at most this many are redone after a kill, besides those in progress


def placed(config: EvaluateConfig) -> EvaluateConfig:
    """Make all names absolute, because workers have other working directories. Raises ValueError."""
    output = storage.absolute(config.output)
    named = []
    for model in config.model:
        kind = scheme(model)
        if kind == "cinemo":
            named.append(models.absolute(model, config.tracking_uri, output))
        else:
            paths = model[len(kind) + 1 :].split("+")
            there = [storage.absolute(path) if os.path.exists(path) else path for path in paths]
            named.append(f"{kind}:{'+'.join(there)}")
    kind, colon, place = config.dataset.partition(":")
    dataset = f"{kind}{colon}{storage.absolute(place)}" if kind in ("ucf101", "msrvtt") else config.dataset
    if not colon:
        dataset = storage.absolute(config.dataset) if config.dataset != "synthetic" else "synthetic:64"
    loras = requested_adapters.placed(config.lora, config.tracking_uri, output)
    return config.model_copy(update={"output": output, "model": named, "dataset": dataset, "lora": loras})


def frame_size(config: EvaluateConfig) -> tuple[int, int]:
    """Frame size (H, W) in pixels of the comparison. Raises ValueError."""
    if config.height is not None and config.width is not None:
        return config.height, config.width
    if (config.height is None) != (config.width is None):
        raise ValueError(f"--height {config.height} and --width {config.width} go together; give both or neither")
    for model in config.model:
        if scheme(model) == "cinemo" and (sizes := checkpoint.read_card(models.resolve(model)).sizes):
            return sizes[0]
    return DEFAULT_SIZE


def find_adapters(config: EvaluateConfig) -> list[Lora]:
    """Look up the adapters of --lora, and check that they fit every Cinemo model. Raises ValueError."""
    found: list[Lora] = []
    cinemo = [model for model in config.model if scheme(model) == "cinemo"]
    if config.lora and not cinemo:
        raise ValueError(f"--lora {' '.join(config.lora)}: no Cinemo model is compared; add one with --model")
    for model in cinemo:
        try:
            found = requested_adapters.chosen(config.lora, functools.partial(requested_adapters.look_up, model=model))
        except SettingError as error:
            raise ValueError(f"--lora: {error}") from None
    return found


def identity(config: EvaluateConfig, loras: Sequence[Lora] = ()) -> dict[str, Any]:
    """Settings that all rows depend on: jobs that share an output must have them equal. loras: by find_adapters."""
    height, width = frame_size(config)
    names = {"dataset", "num_frames", "min_interval", "max_interval", "motion_bucket", "num_inference_steps"}
    names |= {"guidance_scale", "scheduler", "seed", "i3d", "inception", "c3d", "clip", "lpips", "precision"}
    return {
        "job": "evaluate",
        "schema_version": SCHEMA_VERSION,
        "score_definition": SCORE_DEFINITION,
        "sampling_version": SAMPLING_VERSION,
        "height": height,
        "width": width,
        **config.model_dump(include=names),
        "metrics": config.measured,
        **({"lora": [[one["fingerprint"], one["weight"]] for one in loras]} if loras else {}),
    }


@dataclass(frozen=True)
class Job:
    """A checked configuration with absolute names, and what was read to check it."""

    config: EvaluateConfig
    size: tuple[int, int]  # frame size (H, W) in pixels
    identity: dict[str, Any]  # settings that all rows depend on
    cases: list[datasets.Case]
    facts: dict[str, models.Facts]  # Cinemo models by name
    loras: list[Lora] = field(default_factory=list)  # adapters that every Cinemo model gets


def resolve(config: EvaluateConfig) -> Job:
    """Refuse what cannot work, before a cluster is touched: raises ValueError for dataset, models, weights, output."""
    from pipelines.evaluate.animators import FINISHED
    from pipelines.evaluate.measure import Networks

    config = placed(config)
    cases = datasets.read(config.dataset, config.limit, config.seed)
    if not cases:
        raise ValueError(f"--dataset {config.dataset}: it lists no video")
    if len(set(config.model)) < len(config.model):
        raise ValueError(f"--model {' '.join(config.model)}: one model is named twice")
    facts = {model: models.look_up(model) for model in config.model if scheme(model) == "cinemo"}
    loras = find_adapters(config)
    job = Job(config, frame_size(config), identity(config, loras), cases, facts, loras)
    # Settings of outputs without adapters lack `lora`; those of earlier versions lack `metrics`.
    Output(config.output).check({"lora": None, **job.identity}, defaults={"metrics": config.measured})
    for model in config.model:
        if model in facts:
            fits(facts[model], config, job.size)
        elif scheme(model) == REAL:
            raise ValueError(f"--model {model}: the dataset's own clips are measured anyway")
        elif scheme(model) == "videos" and not storage.list_files(model.partition(":")[2], sum(FINISHED, ())):
            raise ValueError(f"--model {model}: there is no video in it")
    Networks(config, "cpu")
    return job


def fits(facts: models.Facts, config: EvaluateConfig, size: tuple[int, int]) -> None:
    """Raise ValueError when a Cinemo model does not support the comparison's size, length or samplers."""
    from cinemo.arguments import check_length, check_size
    from cinemo.samplers import SCHEDULERS

    check_size(*size, facts.factor, facts.card.sizes)
    check_length(config.num_frames, facts.card.lengths)
    named = [config.scheduler, *(v.settings.get("scheduler") for v in variants(config))]
    for name in named:
        if name is not None and name not in SCHEDULERS:
            raise ValueError(f"--scheduler {name} is unknown; use {', '.join(SCHEDULERS)}")


def plan(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Map each model, the real clips among them, to its cases under each of its variants, with ids."""
    from pipelines.evaluate.animators import version

    # Without the metrics, so that ids of earlier versions stay.
    shared = json.dumps({name: value for name, value in job.identity.items() if name != "metrics"}, sort_keys=True)
    marks = {model: version(model) for model in (REAL, *job.config.model)}
    marks |= {model: facts.fingerprint for model, facts in job.facts.items()}
    planned: dict[str, list[dict[str, Any]]] = {}
    for variant in variants(job.config):
        mark = marks[variant.model]
        planned.setdefault(variant.model, []).extend(
            {**case, "id": rows.row_id(case, variant.name, mark, shared), "variant": variant} for case in job.cases
        )
    return planned


def run(job: Job) -> dict[str, Any]:
    """Run the job, or the rest of it; returns the summary. Needs a running Ray."""
    from pipelines.evaluate import report

    config, planned = job.config, plan(job)
    out, began = Output(config.output), time.monotonic()
    with (
        lease.hold(out.uri) as held,
        tracking.start("evaluate", out.uri, config.tracking_uri, config.model_dump()) as log,
    ):
        new = work(job, planned)
        ids = [case["id"] for cases in planned.values() for case in cases]
        measured, rejects = rows.read(out.uri, ids)
        if len(measured) + len(rejects) < len(set(ids)):
            raise RuntimeError(f"{len(set(ids)) - len(measured) - len(rejects)} rows left no trace in {out.uri}")
        reasons = Counter(row["reason"] for row in rejects)
        counts = {"cases": len(planned[REAL]), "rows": len(measured), "rejects": dict(sorted(reasons.items()))}
        compared = variants(config)
        cells = report.values(config, compared, measured)
        marks = {models.plain(model): facts.fingerprint for model, facts in job.facts.items()}
        held.confirm()
        loras = {f"{models.plain(one['name'])}:{one['weight']:g}": one["fingerprint"] for one in job.loras}
        text = report.markdown(config, compared, cells, counts, job.size, marks | loras)
        storage.put_changed(out.place("report.parquet"), report.parquet(cells, config))
        pictures = report.pictures(config, compared, measured)
        for name, data in {"report.md": text.encode(), **pictures}.items():
            out.show(name, data, log)
        log.metrics({f"{cell.metric}/{tag(cell.variant)}": cell.value for cell in cells if cell.value == cell.value})
        for mark in marks.values():
            log.came_from("train", tracking.FINGERPRINT, mark)
        summary = {
            "job": "evaluate",
            "output": out.uri,
            "report": out.place("report.md"),
            "counts": counts,
            "model_fingerprints": marks,
            "loras": loras,
            "left_out": config.left_out,
            "metrics": {v.label: {c.metric: rounded(c) for c in cells if c.variant == v.label} for v in compared},
            "too_many_rejects": len(rejects) > config.max_reject_fraction * len(ids),
        }
        now = {"new_rows": new, "run_id": log.run_id, "seconds": round(time.monotonic() - began, 2)}
        if new or not out.is_finished:  # repeating a finished job changes no file
            out.finish(summary | now)
    print(text, file=sys.stderr)
    return summary | now


def work(job: Job, planned: dict[str, list[dict[str, Any]]]) -> int:
    """Measure the missing rows, model by model; returns how many rows are new."""
    out = Output(job.config.output)
    done = rows.done(out.uri)
    total = sum(len(cases) for cases in planned.values())
    left = {model: [case for case in cases if case["id"] not in done] for model, cases in planned.items()}
    fresh = sum(len(cases) for cases in left.values())
    if fresh or not out.is_finished:
        out.claim(job.identity)
    progress = Progress("evaluate", "clips", total, began=total - fresh)
    for model, cases in left.items():
        if not cases:
            continue
        to_stderr(f"evaluate  {models.plain(model)}: {len(cases)} clips")
        for part in build(job, model, cases).iter_rows():
            progress.add(part["rows"])
    return fresh


def tag(label: str) -> str:
    """A variant's label in characters that MLflow allows in a metric's name; of a path, only the last name."""
    return "".join(c if c.isalnum() or c in "_-. " else "_" for c in label.rsplit("/", 1)[-1])


def rounded(cell: "report.Value") -> list[float | None]:
    """[value, low, high] for the summary; None instead of NaN."""
    return [None if number != number else round(number, 6) for number in (cell.value, cell.low, cell.high)]


class Evaluator:
    """Animates and measures the cases of one model, one at a time, in a process of the pool."""

    def __init__(
        self,
        config: EvaluateConfig,
        model: str,
        size: tuple[int, int],
        loras: Sequence[Lora] = (),
        fingerprint: str | None = None,
    ) -> None:
        """loras, fingerprint: as the job found them; raises ValueError if the files here are others."""
        from pipelines.evaluate import animators, measure
        from pipelines.prepare import clips

        device = "cuda" if config.gpus else "cpu"
        self.measure = measure.measure
        self.config, self.size = config, size
        self.animate = None if model == REAL else animators.load(model, config, device)
        if fingerprint is not None:
            models.check_unchanged(model, models.resolve(model), fingerprint)
        own = config.model_copy(update={"model": [model]})
        if config.lora and scheme(model) == "cinemo" and find_adapters(own) != list(loras):
            raise ValueError("--lora: an adapter's file has changed since the job began; run the job again")
        self.nets = measure.Networks(config, device)
        self.run = clips.in_sandbox(config.clip_timeout)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Measure cases, given as JSON; yields a table of schema ROW for each."""
        for text in block["case"].to_pylist():
            case = json.loads(text)
            variant = Variant(*case["variant"])
            row = self.measure(case, variant, self.animate, self.nets, self.config, self.size, self.run)
            yield pa.Table.from_pylist([row], schema=rows.ROW)


def write_block(block: pa.Table, output: str) -> pa.Table:
    """Write rows to files; returns one row: the numbers of rows and of rejects."""
    rows.write(block.to_pylist(), output)
    return pa.table({"rows": [block.num_rows], "rejects": [block.num_rows - block["reason"].null_count]})


def build(job: Job, model: str, cases: list[dict[str, Any]]) -> "ray.data.Dataset":
    """Build the lazy dataflow of one model. Models run one after another: two large ones may not fit at once."""
    import ray.data

    config = job.config
    fingerprint = job.facts[model].fingerprint if model in job.facts else None
    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = config.gpus or config.workers or cpus

    # 1. A few cases per block, so that a slow case does not delay many others.
    table = pa.table({"case": [json.dumps(case) for case in cases]})
    step = max(1, min(4, len(cases) // (2 * workers)))
    waiting = ray.data.from_arrow([table.slice(first, step) for first in range(0, len(cases), step)])

    # 2. Read, animate and measure in one process, because frames are large; a fixed pool, because models load slowly.
    measured = waiting.map_batches(
        Evaluator,
        fn_constructor_args=(config, model, job.size, job.loras, fingerprint),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, -(-len(cases) // step))),
        num_gpus=1 if config.gpus else 0,
        num_cpus=0.8,
    )

    # 3. Write files of a few rows. One task is enough: it mostly waits for storage.
    return measured.map_batches(
        write_block,
        fn_args=(config.output,),
        batch_size=ROWS_PER_FILE,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=1),
        num_cpus=0.1,
    )
