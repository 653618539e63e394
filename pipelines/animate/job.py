"""Turn a catalog of images into videos: tasks (plan.py) -> videos (flow.py) -> a listing, a gallery, a summary.

Exactly once: a video is named by the bytes of its image and of its source video, its settings and its model, and its
sidecar is written last; a row of the catalog has a key that changes with it. So the same command finishes a job that
was killed at any moment and makes what changed in the catalog, and a finished job changes no file. A reject is a
result: delete OUT/rejects to try them again. Videos of rows that are no longer in the catalog are kept, but not listed.
"""

import functools
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from cinemo.checkpoint import inversion_note
from pipelines.animate import files, gallery, listing, plan, records, request, requested_adapters
from pipelines.animate.config import AnimateConfig
from pipelines.core import lease, models, storage, tracking
from pipelines.core.output import Output
from pipelines.core.progress import Progress, to_stderr
from pipelines.dataset import manifest
from pipelines.sources import catalogs
from pipelines.sources.rows import Tally

PASSES = 3  # passes over what is left; a second is needed when Ray loses rows with a node


def placed(config: AnimateConfig) -> AnimateConfig:
    """Make names absolute, because workers have other working directories. Raises ValueError."""
    output = storage.absolute(config.output)
    model = models.absolute(config.model, config.tracking_uri, output)
    loras = requested_adapters.placed(config.lora, config.tracking_uri, output)
    return config.model_copy(update={"output": output, "model": model, "lora": loras})


def identity(config: AnimateConfig) -> dict[str, Any]:
    """What an output belongs to. All other settings may change; the rows that they change are made again."""
    return {
        "job": "animate",
        "schema_version": records.SCHEMA_VERSION,
        "catalog": storage.absolute(config.catalog),
    }


@dataclass(frozen=True)
class Job:
    """A checked configuration, with names that are valid in every process, and what was read to check it."""

    config: AnimateConfig
    model: models.Facts


def resolve(config: AnimateConfig) -> Job:
    """Check the configuration before a cluster is used. Raises ValueError for catalog, settings, model or output."""
    config = placed(config)
    catalogs.check(config.catalog, config.image_column, config.prompt_column, config.prompt, config.video_column)
    if catalogs.is_below(config.output, config.catalog):
        raise ValueError(
            f"--output {config.output} lies in the folder that --catalog names, which would list its pictures; "
            "give a folder beside it"
        )
    Output(config.output).check(identity(config), {"schema_version": "--output"})
    model = models.look_up(config.model)
    try:
        request.complete(config, config.prompt or "", model, config.ending)
        requested_adapters.chosen(config.lora, functools.partial(requested_adapters.look_up, model=config.model))
    except request.SettingError as error:
        raise ValueError(f"--{error.field.replace('_', '-')}: {error}") from None
    return Job(config, model)


def run(job: Job, animator: type | None = None) -> dict[str, Any]:
    """Run the job, or what is left of it; returns the summary. Needs a running Ray.

    animator: see flow.build.
    """
    config, model = job.config, job.model
    out, began = Output(config.output), time.monotonic()
    with (
        lease.hold(out.uri) as held,
        tracking.start("animate", out.uri, config.tracking_uri, config.model_dump()) as log,
    ):
        log.tags({tracking.FINGERPRINT: model.fingerprint, "model": models.plain(config.model)})
        log.came_from("train", tracking.FINGERPRINT, model.fingerprint)
        tally = Tally()
        wanted = plan.write(config, model, out.place("catalog"), tally)
        for line in tally.warnings():
            to_stderr(line)
        if wanted.edited and (note := inversion_note(models.plain(config.model), model.scheduler)):
            to_stderr(f"note: {note}")
        found = listing.survey(out.uri)
        sums: Counter[str] = Counter()
        finished = out.is_finished and found.lists(wanted)
        if not finished:
            out.claim(identity(config))
            found, sums = work(job, wanted, found, animator, held)
        summary = describe(job, wanted, found)
        took = time.monotonic() - began
        now = {
            "new_videos": sums["made"],
            "videos_per_second": round(sums["made"] / took, 3),
            "files_of_unknown_kinds": dict(sorted(tally.unknown.items())),
            "run_id": log.run_id,
            "seconds": round(took, 2),
        }
        log.metrics({"videos": found.videos, "rows": len(wanted.keys), "seconds": took, "new_videos": sums["made"]})
        log.metrics({f"rejects_{reason}": count for reason, count in found.reasons.items()})
        if found.psnr is not None:
            log.metrics({"psnr_first_frame": found.psnr})
        if not finished:
            held.confirm()
            storage.put_changed(out.place("index.html"), gallery.page(out.uri, summary["counts"], config.ending))
            if (sheet := gallery.sheet(out.uri, config.ending)) is not None:
                out.show("sheet.png", sheet, log)
            out.finish(summary | now)
    for line in (*lines(found), *tally.lines_of_files()):
        to_stderr(line)
    return summary | now


def work(
    job: Job, wanted: plan.Plan, found: listing.Survey, animator: type | None, held: lease.Lease
) -> tuple[listing.Survey, Counter[str]]:
    """Make and list what is left; returns the new listing, and sums over the rows that the dataflow returned.

    Raises RuntimeError when rows are still missing after PASSES passes.
    """
    output, sums = job.config.output, Counter[str]()
    for _ in range(PASSES):
        done = np.intersect1d(found.keys, wanted.keys)
        if len(done) < len(wanted.keys):
            sums += one_pass(job, wanted, done, animator)
        held.confirm()
        listing.settle(output, wanted)
        found = listing.survey(output)
        if found.lists(wanted):
            files.forget_latents(output)
            return found, sums
    lost = len(wanted.keys) - len(np.intersect1d(found.keys, wanted.keys))
    raise RuntimeError(f"{lost} rows left no trace in {output}; is it the same place on every node?")


def one_pass(job: Job, wanted: plan.Plan, done: np.ndarray, animator: type | None) -> Counter[str]:
    """Run the dataflow to its end, and list its rows."""
    from pipelines.animate import flow  # torch, which `--help` does not need

    config = job.config
    slices = manifest.slices(wanted.files, smallest=config.batch_size)
    progress = Progress("animate", "rows", len(wanted.keys), began=len(done))
    sums: Counter[str] = Counter()
    writer = listing.Writer(config.output, config.ending)
    try:
        dataset = flow.build(config, job.model, slices, done, animator, wanted.edited, wanted.loras)
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                writer.add(row)
                sums["made"] += bool(row["made"])
            progress.add(block.num_rows)
    finally:
        writer.close()
    return sums


def describe(job: Job, wanted: plan.Plan, found: listing.Survey) -> dict[str, Any]:
    """Summarise the files. No times, so that reruns give the same.

    rows = listed + rejected; listed = videos + rows that share one.
    """
    config, rejects = job.config, dict(sorted(found.reasons.items()))
    return {
        "job": "animate",
        "output": config.output,
        "model": models.plain(config.model),
        "model_fingerprint": job.model.fingerprint,
        "counts": {
            "rows": len(wanted.keys),
            "listed": found.listed,
            "videos": found.videos,
            "rejected": sum(rejects.values()),
            "rejects": rejects,
        },
        "too_many_rejects": sum(rejects.values()) > config.max_reject_fraction * len(wanted.keys),
        "motion_bucket_histogram": found.buckets,
        "psnr_first_frame": found.psnr,
        "much_cut_away": found.much_cut,
    }


def lines(found: listing.Survey) -> list[str]:
    """Lines to print at the end of a job: videos, those with much of the image cut away, and rejects by reason."""
    rejects = [f"{count:>10}  rejected: {reason}" for reason, count in found.reasons.most_common()]
    cut = f"{found.much_cut:>10}  rows with more than a third of the image cut away; --fit pad shows all of it"
    return [f"{found.videos:>10}  videos for {found.listed} rows", *([cut] if found.much_cut else []), *rejects]
