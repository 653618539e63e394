"""Turn videos into a training dataset: the manifest's videos -> encoded clips (flow.py) -> Parquet.

Exactly once: a part is written whole and named by the ids in it, and the contents of parts and rejects are read before
anything is decoded. So the same command finishes a job that was killed at any moment, and a finished job changes no
file. A reject is a result: delete OUT/rejects and OUT/dataset.json to try them again.
"""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cinemo.motion import NUM_BUCKETS
from cinemo.video import VideoError
from pipelines import sources
from pipelines.core import hashing, lease, models, plots, storage, tracking
from pipelines.core.output import Output
from pipelines.core.progress import Progress, to_stderr
from pipelines.dataset import index, manifest, parts, records
from pipelines.prepare import clips, flow
from pipelines.prepare.config import PrepareConfig

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

REMOVERS = 16  # files removed at once: removing mostly waits for storage
FEW = 0.01  # buckets with a smaller share of the clips are hardly learned
STAGES = ("decode_s", "score_s", "encode_s")


@dataclass(frozen=True)
class Job:
    """A checked configuration, with names that are valid in every process, and what was read to check it."""

    config: PrepareConfig
    shapes: list[records.Shape]  # all that clips may have
    identity: dict[str, Any]  # all settings that change a row, by the name of their flag


def resolve(config: PrepareConfig) -> Job:
    """Check the configuration before a cluster is used. Raises ValueError for the source, the model or the output."""
    config = placed(config)
    sources.check(config.input, config.uri_column, config.caption_column)
    job = Job(config, flow.clip_shapes(config), identity(config))
    # An output that was made without a limit or a column does not name it; None makes `check` compare it all the same.
    columns = flow.columns_of(job.identity)
    asked = {**job.identity, "max_enlargement": job.identity.get("max_enlargement"), **columns}
    flags = {"vae_fingerprint": "--model", "text_fingerprint": "--model"}
    Output(config.output).check(asked, flags, defaults=columns)
    flow.check_columns(config.output, columns)
    return job


def placed(config: PrepareConfig) -> PrepareConfig:
    """Make names absolute, because workers have other working directories. Raises ValueError."""
    output = storage.absolute(config.output)
    model = models.absolute(config.model, config.tracking_uri, output)
    return config.model_copy(update={"output": output, "model": model})


def identity(config: PrepareConfig) -> dict[str, Any]:
    """All settings that change a row, by the name of their flag. Jobs with equal ones may share an output."""
    return {"input": storage.absolute(config.input), **flow.identity(config)}


def build(job: Job, slices: pa.Table, written: parts.Survey) -> "ray.data.Dataset":
    """Build the lazy dataflow. Its rows describe the parts written: numbers of clips and rejects, seconds by stage."""
    import ray.data

    config = job.config

    # Steps 1 to 3, in flow.py: spans, clips, latents. Finished videos are not opened.
    rows = flow.extract(config, job.identity, slices, written.keys, written.finished(config.clips_per_video))

    # 4. Parts, each named by its content. Writing mostly waits for storage. Only a few at a time, because each would
    #    start a worker process, which costs more than the part.
    writers = max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
    return rows.map_batches(
        write_block,
        fn_args=(config.output, len(job.shapes) > 1),
        batch_size=config.clips_per_file,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=writers),
        num_cpus=0.1,
    )


def write_block(rows: pa.Table, output: str, by_shape: bool) -> pa.Table:
    """Write encoded rows and rejects below output; returns their numbers, and the seconds of every stage.

    by_shape: see parts.write.
    """
    began = time.perf_counter()
    seconds = {name: [sum(value or 0.0 for value in rows[name].to_pylist())] for name in STAGES}
    good, bad = parts.write(rows.to_pylist(), output, by_shape)
    return pa.table({"clips": [good], "rejects": [bad], **seconds, "write_s": [time.perf_counter() - began]})


def run(job: Job) -> dict[str, Any]:
    """Run the job, or what is left of it; returns the summary. Needs a running Ray."""
    config = job.config
    out, began = Output(config.output, "dataset.json"), time.monotonic()
    with (
        lease.hold(out.uri) as held,
        tracking.start("prepare", out.uri, config.tracking_uri, config.model_dump()) as log,
    ):
        tally = sources.Tally()
        videos = sources.iter_videos(config.input, config.uri_column, config.caption_column, tally)
        files, wanted = manifest.write(videos, out.place("videos"), records.names_of)
        for line in tally.warnings():
            to_stderr(line)
        written, sums = finish_clips(job, out, held, files, wanted)
        made = describe(job, written)
        held.confirm()
        if not config.score_only:  # what is not trained on needs no index
            index.update(out.uri, made)
        storage.put_json(out.place(out.last), made)
        took = time.monotonic() - began
        summary = summarize(job, made, tally.counts(), sums, took, log.run_id)
        log_results(log, made, summary["clips_per_second"], took)
        if sums or not storage.exists(out.place("summary.json")):  # a finished job changes no file
            for name, picture in pictures(written, clips.in_sandbox(config.clip_timeout)).items():
                out.show(name, picture, log)
            out.finish(summary)
    for line in (*count_lines(made["counts"]), *shape_lines(made), *tally.lines()):
        to_stderr(line)
    if config.balance and (warning := thin_buckets(made["bucket_histogram"])):
        to_stderr(warning)
    return summary


def finish_clips(
    job: Job, out: Output, held: lease.Lease, files: dict[str, int], wanted: np.ndarray
) -> tuple[parts.Survey, Counter[str]]:
    """Make the clips that are missing, drop those that are stored twice, and merge small files.

    files, wanted: the manifest's files, and the hashes of its videos' names (manifest.write). Returns a survey of the
    output and the sums of `work`, which are empty if nothing was missing. Raises RuntimeError if a video left no row.
    """
    written = parts.survey(out.uri)
    if out.is_finished and hashing.is_among(wanted, written.videos).all():
        return written, Counter()
    out.claim(job.identity)
    written = keep_once(out, held, written)  # else a row that is there twice would hide a missing one
    sums = work(job, manifest.slices(files), written, len(wanted))
    written = keep_once(out, held, parts.survey(out.uri))
    if lost := len(wanted) - int(hashing.is_among(wanted, written.videos).sum()):
        raise RuntimeError(f"{lost} videos left no row in {out.uri}; is it the same place on every node?")
    merge_files(out.uri, held)
    return written, sums


def keep_once(out: Output, held: lease.Lease, written: parts.Survey) -> parts.Survey:
    """Drop the rows that a survey found twice; returns a survey of what is left."""
    held.confirm()
    if not written.has_duplicates:
        return written
    parts.drop_duplicates(out.uri)
    return parts.survey(out.uri)


def summarize(
    job: Job,
    made: Mapping[str, Any],
    source: Mapping[str, Any],
    sums: Mapping[str, float],
    took: float,
    run_id: str | None,
) -> dict[str, Any]:
    """Make the job's summary. made: dataset.json. source: counts of the source's rows.

    sums: numbers of clips and rejects, and seconds of every stage, from `work`. took: seconds of the job.
    """
    counts = made["counts"]
    rejects = sum(counts["rejects"].values())
    return {
        "job": "prepare",
        "output": job.config.output,
        "counts": counts,
        "source": source,
        "too_many_rejects": rejects > job.config.max_reject_fraction * (counts["clips"] + rejects),
        **({"shapes": made["shapes"]} if "shapes" in made else {}),
        "bucket_histogram": made["bucket_histogram"],
        "fingerprint": made["fingerprint"],
        "new_clips": sums["clips"],
        "clips_per_second": measure_speeds(sums, took),
        "run_id": run_id,
        "seconds": round(took, 2),
    }


def log_results(log: tracking.Log, made: Mapping[str, Any], speeds: Mapping[str, float], took: float) -> None:
    """Log what was made, at which speeds (measure_speeds) and in how many seconds. made: dataset.json."""
    counts = made["counts"]
    log.tags({"dataset_fingerprint": made["fingerprint"], "vae_fingerprint": made["vae_fingerprint"]})
    log.metrics({"clips": counts["clips"], "videos": counts["videos"], "seconds": took})
    log.metrics({f"rejects_{reason}": count for reason, count in counts["rejects"].items()})
    log.metrics({f"clips_per_second_{stage}": speed for stage, speed in speeds.items()})


def work(job: Job, slices: pa.Table, written: parts.Survey, videos: int) -> Counter[str]:
    """Run the dataflow to its end; returns the numbers of clips and rejects written, and the seconds of every stage."""
    done = len(written.keys)
    # An upper bound: a reject of a whole video stands for all of its clips.
    progress = Progress("prepare", "clips", max(done, videos * job.config.clips_per_video), began=done)
    sums: Counter[str] = Counter()
    for part in build(job, slices, written).iter_rows():
        sums.update(part)
        progress.add(part["clips"] + part["rejects"])
    return sums


def merge_files(output: str, held: lease.Lease, target: int = parts.MERGED_BYTES) -> None:
    """Merge small files of clips into ones of about `target` bytes, on all CPUs; a dataset below that stays as it is.

    A kill leaves the rows of a few files twice; the same command drops them and goes on.
    """
    groups = parts.to_merge(output, target)
    if not groups:
        return
    import ray

    progress = Progress("merge", "files", sum(map(len, groups)))
    merge = ray.remote(parts.merge)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # tasks that wait or run
    with ThreadPoolExecutor(REMOVERS) as pool:
        running: list[Any] = []
        for group in [*groups, None]:
            if group is not None:
                running.append(merge.remote(output, group))
            while running and (group is None or len(running) >= most):
                [done], running = ray.wait(running)
                merged = ray.get(done)
                held.confirm()  # a job that took the lease may have dropped the merged file
                list(pool.map(storage.remove, merged))
                progress.add(len(merged))


def describe(job: Job, written: parts.Survey) -> dict[str, Any]:
    """The content of dataset.json: settings, and counts read back from the files. No times, so reruns give the same.

    videos = those with a clip + those with only a reject; rejected_videos + rejected_clips = the sum of rejects.
    A segment counts as a video.
    bucket_weights: sampling weight of a clip of each bucket, so that all buckets count the same; the mean over the
    clips is 1.
    shapes: if the flags allow several, those of the clips with their numbers of clips, the most frequent first.
    """
    # Without flags that earlier versions did not store, so that a dataset to which they are added stays the same.
    hashed = [{name: value for name, value in job.identity.items() if name not in flow.COLUMNS}, written.identity]
    rejects = dict(sorted(written.reasons.items()))
    filled = sum(1 for count in written.buckets if count)
    weights = [written.clips / (filled * count) if count else 0.0 for count in written.buckets]
    return {
        **job.identity,
        "counts": {
            "videos": len(written.videos),
            "clips": written.clips,
            "rejected_videos": written.rejected_videos,
            "rejected_clips": sum(rejects.values()) - written.rejected_videos,
            "rejects": rejects,
        },
        **({"shapes": counted_shapes(written)} if len(job.shapes) > 1 else {}),
        "bucket_histogram": written.buckets,
        "bucket_weights": weights if job.config.balance else None,
        "fingerprint": hashlib.sha256(json.dumps(hashed).encode()).hexdigest(),
    }


def counted_shapes(written: parts.Survey) -> list[dict[str, int]]:
    """Entries of `shapes` in dataset.json: num_frames, height, width and clips, the most frequent shape first."""
    names = [name for name, _ in records.SHAPE]
    found = sorted(written.shapes.items(), key=lambda item: (-item[1], item[0]))
    return [{**dict(zip(names, shape, strict=True)), "clips": clips} for shape, clips in found]


def count_lines(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines to print at the end of a job: clips, and rejects by reason."""
    yield f"{counts['clips']:>10}  clips of {counts['videos']} videos"
    for reason, count in sorted(counts["rejects"].items(), key=lambda item: -item[1]):
        yield f"{count:>10}  rejected: {reason}"


def shape_lines(made: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines with the clips of each shape, if there may be several. made: dataset.json."""
    for shape in made.get("shapes", []):
        yield f"{shape['clips']:>10}  of {shape['num_frames']} frames, {shape['width']}x{shape['height']}"


def thin_buckets(histogram: Sequence[int]) -> str | None:
    """Warning that names the motion buckets with too few clips to be learned; None when all have enough."""
    few = [str(bucket) for bucket in range(NUM_BUCKETS) if histogram[bucket] < FEW * sum(histogram)]
    return f"warning: under {FEW:.0%} of the clips in motion buckets {', '.join(few)}" if few else None


def measure_speeds(sums: Mapping[str, float], took: float) -> dict[str, float]:
    """Clips per second of the whole job, and of one busy process of each stage. Empty without new clips.

    sums: clips, and seconds by stage (decode_s, ...), of this run. took: its seconds.
    """
    new = sums.get("clips", 0)
    if not new:
        return {}
    stages = {name.removesuffix("_s"): value for name, value in sums.items() if name.endswith("_s") and value}
    return {"job": round(new / took, 3), **{name: round(new / value, 3) for name, value in stages.items()}}


def pictures(written: parts.Survey, run: clips.Run) -> dict[str, bytes]:
    """Draw PNGs, by file name: the histogram of buckets and, if there are clips, a sheet with one of each bucket."""
    from cinemo.sheet import sheet_png

    found = {"bucket_histogram.png": plots.bars(written.buckets, "motion bucket", "clips")}
    rows = []
    for bucket, clip in sorted(written.examples.items()):
        # A clip that can no longer be read must not fail the job.
        with contextlib.suppress(VideoError):
            size = (clip["height"], clip["width"])
            span = (clip["uri"], clip["start_frame"], clip["interval"], clip["num_frames"], size)
            frames, similar, *_ = run(clips.read_clip, *span)
            rows.append((f"bucket {bucket}, SSIM {similar.mean():.3f}", frames))
    if (sheet := sheet_png(rows)) is not None:
        found["bucket_sheet.png"] = sheet
    return found
