"""Videos to a training dataset: manifest -> spans -> clips -> score -> latents -> Parquet, on Ray Data.

Knows the picture, the resources of each stage and what a finished dataset is. What happens to one clip is clips.py.

Exactly once: a part is written whole, named by the ids in it, and what parts and rejects hold is known before anything
is decoded. So the same command finishes a job that was killed at any moment, and a finished job changes no file. A
reject is a result: delete OUT/rejects to have them tried again.
"""

import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from cinemo import checkpoint
from cinemo.motion import SCORE_DEFINITION
from cinemo.video import SAMPLING_VERSION
from pipelines import clips, manifest, parts, records, report, sources, storage, tracking
from pipelines.progress import Progress, to_stderr

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

DEFAULT_SIZE = (320, 512)  # the paper's, for a model directory that states none
STAGES = ("decode_s", "score_s", "encode_s")


class PrepareConfig(clips.SamplingConfig, frozen=True):
    """What the prepare job takes: sampling, and where from, where to, with which model."""

    input: str = Field(description="folder, .csv, .jsonl, .parquet or WebDataset .tar of videos; a path or any URI")
    output: str = Field(description="folder or URI of the dataset; the same command again finishes what is there")
    uri_column: str | None = Field(None, description="column of a manifest that names the video; default: known names")
    caption_column: str | None = Field(None, description="column that holds the caption; default: known names")
    model: str = Field("builtin:tiny", description="model whose VAE encodes: builtin:tiny, a directory, or a hub id")
    height: int | None = Field(None, ge=64, multiple_of=8, description="pixels; default: the model's, else 320")
    width: int | None = Field(None, ge=64, multiple_of=8, description="pixels; default: the model's, else 512")
    score_only: bool = Field(False, description="write scores and buckets, no latents")
    store_posterior: bool = Field(False, description="store the latents' log-variance beside their mean")
    embed_text: bool = Field(False, description="store text embeddings too, so that training needs no text encoder")
    balance: bool = Field(False, description="write a sampling weight for each bucket, so that all count the same")
    encoders: int | None = Field(None, ge=1, description="processes that run the VAE; default: one for each CPU")
    gpus: int = Field(0, ge=0, description="GPUs for the VAE, one process each, in place of --encoders")
    clip_timeout: float = Field(120, gt=0, description="seconds for one clip to be read and scored; then a reject")
    clips_per_file: int = Field(32, ge=1, description="clips in a Parquet file, and what a kill at most makes do again")
    max_reject_fraction: float = Field(0.5, ge=0, le=1, description="exit 3 when more than this share was rejected")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database; default: mlflow.db beside the output"
    )


def build(config: PrepareConfig, slices: pa.Table, written: parts.Survey) -> "ray.data.Dataset":
    """The dataflow, lazily. Its rows are the parts as they are written: (clips, rejects) and seconds by stage."""
    import ray.data

    size = frame_size(config)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    bound_memory(config, size, cpus)

    # 1. Slices of the manifest: a file name and two numbers, however many videos there are.
    videos = ray.data.from_arrow([slices.slice(i, 1) for i in range(slices.num_rows)])

    # 2. Spans with content ids (what is done leaves here, before a byte is decoded); then decode, score and bucket in
    #    the same task: frames travel once. With GPUs each decoder has a core. Without, decoders and encoders have half
    #    a core each, so that there are two processes a core and the slower stage gets what the other leaves.
    done = ray.put((written.keys, written.finished(config.clips_per_video)))
    taken = videos.map_batches(
        take_slice,
        fn_args=(config, size, done),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1 if config.gpus else 0.5,
    )

    # 3. Latents. A fixed pool, because loading a VAE is slow; frames end here. Less than the half core that decoding
    #    takes: Ray fuses neighbours with equal needs, and then the encoders would decode.
    encoder = (config.model, config.num_frames, size, config.embed_text, config.store_posterior)
    encoded = (
        taken
        if config.score_only
        else taken.map_batches(
            clips.Encoder,
            fn_constructor_args=(*encoder, "cuda" if config.gpus else "cpu"),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(slices.num_rows, config.gpus or config.encoders or cpus)),
            num_gpus=1 if config.gpus else 0,
            num_cpus=0.4,
        )
    )

    # 4. Parts, each named by what is in it. It mostly waits for storage.
    return encoded.map_batches(
        write_block,
        fn_args=(config.output, config.num_frames, size),
        batch_size=config.clips_per_file,
        batch_format="pyarrow",
        num_cpus=0.1,
    )


def bound_memory(config: PrepareConfig, size: tuple[int, int], cpus: int) -> None:
    """Keep what is under way to some clips a core, however many videos wait: blocks are a clip or a few."""
    import ray.data

    clip = config.num_frames * size[0] * size[1] * 3
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = max(clip, 4 << 20)
    # The default is half of the object store, which a long job fills and a short one does not.
    room = max(128 << 20, 8 * (cpus + config.gpus) * context.target_max_block_size)
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(object_store_memory=room)


def take_slice(slices: pa.Table, config: PrepareConfig, size: tuple[int, int], done: Any) -> Iterator[pa.Table]:
    """Slices of the manifest -> a table for each clip or reject that is not done, in the order of the manifest.

    done: a reference to two sorted arrays of hashes, of rows and of videos.
    """
    import ray

    rows, finished = ray.get(done)
    run = clips.in_sandbox(config.clip_timeout)
    for part in slices.to_pylist():
        videos = list(manifest.read_slice(**part))
        skip = records.is_among(records.hash64(str(video["uri"]) for video in videos), finished)
        for video in (video for video, over in zip(videos, skip, strict=True) if not over):
            spans = clips.make_spans(video, config, size, run)
            for span, written in zip(spans, records.is_among(parts.keys(spans), rows), strict=True):
                if not written:
                    yield records.row_table(clips.decode({"reason": None, **span}, config, size, run))


def write_block(rows: pa.Table, output: str, num_frames: int, size: tuple[int, int]) -> pa.Table:
    """Encoded rows and rejects -> files below output; returns how many of each, and the seconds of every stage."""
    began = time.perf_counter()
    seconds = {name: [sum(value or 0.0 for value in rows[name].to_pylist())] for name in STAGES}
    good, bad = parts.write(rows.to_pylist(), output, num_frames, size)
    return pa.table({"clips": [good], "rejects": [bad], **seconds, "write_s": [time.perf_counter() - began]})


def frame_size(config: PrepareConfig) -> tuple[int, int]:
    """(H, W) in pixels: the flags, else the model's first trained size, else the paper's.

    Raises ValueError when only one of the two is given. Any size is encoded; whether a U-Net takes it, training checks.
    """
    if (config.height is None) != (config.width is None):
        raise ValueError(f"--height {config.height} and --width {config.width} go together; give both or neither")
    sizes = checkpoint.read_card(checkpoint.resolve(config.model)).sizes
    if config.height is None or config.width is None:
        return sizes[0] if sizes else DEFAULT_SIZE
    return config.height, config.width


def settings(config: PrepareConfig) -> dict[str, Any]:
    """Everything that changes a row, by the name of its flag. Two jobs may share an output when these are equal."""
    directory = checkpoint.resolve(config.model)
    height, width = frame_size(config)
    kinds = {"score_only", "store_posterior", "embed_text"}
    chosen = config.model_dump(include={*clips.SamplingConfig.model_fields, *kinds})
    vae = None if config.score_only else checkpoint.fingerprint(directory / checkpoint.vae_name(directory))
    return {
        "schema_version": records.SCHEMA_VERSION,
        "score_definition": SCORE_DEFINITION,
        "sampling_version": SAMPLING_VERSION,
        "input": storage.absolute(config.input),
        **chosen,
        "height": height,
        "width": width,
        "vae_fingerprint": vae,
        "text_fingerprint": checkpoint.fingerprint(directory / "text_encoder") if config.embed_text else None,
    }


def check(config: PrepareConfig) -> None:
    """Refuse what cannot work, before a cluster is touched: raises ValueError for the source, the model, the output."""
    if config.score_only and (config.embed_text or config.store_posterior):
        raise ValueError("--score-only stores no tensors; leave out --embed-text and --store-posterior")
    sources.check(config.input, config.uri_column, config.caption_column)
    wanted, found = settings(config), storage.read_json(storage.join(config.output, "settings.json"))
    for name, value in wanted.items():
        if found is not None and found.get(name) != value:
            flag = "--model" if name.endswith("_fingerprint") else f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag}: {config.output} was made with {name} {found.get(name)!r}, this job has {value!r}; "
                "give the old value, or another --output"
            )


def run(config: PrepareConfig) -> dict[str, Any]:
    """Do the job, or what is left of it; returns the summary. Needs a running Ray; raises ValueError as check does."""
    check(config)
    # Workers have working directories of their own.
    paths = {"output": storage.absolute(config.output), "model": storage.absolute_model(config.model)}
    config = config.model_copy(update=paths)
    output, began = config.output, time.monotonic()
    place = functools.partial(storage.join, output)
    with tracking.start("prepare", output, config.tracking_uri, config.model_dump()) as log:
        videos = sources.iter_videos(config.input, config.uri_column, config.caption_column)
        slices, wanted = manifest.write(videos, place("videos"))
        written = parts.survey(output)
        seconds: Counter[str] = Counter()
        if not storage.exists(place("dataset.json")) or not records.is_among(wanted, written.videos).all():
            storage.put_json(place("settings.json"), settings(config))
            storage.remove(place("dataset.json"))  # not finished any more
            seconds = work(config, slices, written, len(wanted))
            written = parts.survey(output)
            if len(np.unique(written.keys)) < len(written.keys):
                parts.drop_duplicates(output)
                written = parts.survey(output)
            if lost := len(wanted) - int(records.is_among(wanted, written.videos).sum()):
                raise RuntimeError(f"{lost} videos left no row in {output}; is it the same place on every node?")
        made = describe(config, written)
        storage.put_json(place("dataset.json"), made)
        took, counts = time.monotonic() - began, made["counts"]
        rejects = sum(counts["rejects"].values())
        speeds = report.speeds(seconds, took)
        summary = {
            "job": "prepare",
            "output": output,
            "counts": counts,
            "too_many_rejects": rejects > config.max_reject_fraction * (counts["clips"] + rejects),
            "bucket_histogram": made["bucket_histogram"],
            "fingerprint": made["fingerprint"],
            "new_clips": seconds["clips"],
            "clips_per_second": speeds,
            "run_id": log.run_id,
            "seconds": round(took, 2),
        }
        log.tags({"dataset_fingerprint": made["fingerprint"], "vae_fingerprint": made["vae_fingerprint"]})
        log.metrics({"clips": counts["clips"], "videos": counts["videos"], "seconds": took})
        log.metrics({f"rejects_{reason}": count for reason, count in counts["rejects"].items()})
        log.metrics({f"clips_per_second_{stage}": speed for stage, speed in speeds.items()})
        if seconds or not storage.exists(place("summary.json")):  # a job that had nothing to do changes no file
            run = clips.in_sandbox(config.clip_timeout)
            for name, picture in report.pictures(written, config.num_frames, frame_size(config), run).items():
                storage.put_changed(place(name), picture)
                log.picture(name, picture)
            storage.put_json(place("summary.json"), summary)
    for line in report.table(counts):
        to_stderr(line)
    if config.balance and (warning := report.thin_buckets(made["bucket_histogram"])):
        to_stderr(warning)
    return summary


def work(config: PrepareConfig, slices: pa.Table, written: parts.Survey, videos: int) -> Counter[str]:
    """Run the dataflow to its end; returns what was written (clips, rejects) and the seconds of every stage."""
    done = len(written.keys)
    # At most this many: a reject of a whole video stands for all of its clips.
    progress = Progress("prepare", "clips", max(done, videos * config.clips_per_video), began=done)
    sums: Counter[str] = Counter()
    for part in build(config, slices, written).iter_rows():
        sums.update(part)
        progress.add(part["clips"] + part["rejects"])
    return sums


def describe(config: PrepareConfig, written: parts.Survey) -> dict[str, Any]:
    """dataset.json: the settings, and counts that are read back from the files. No clock in it: a rerun says the same.

    videos = those with a clip + those with none but a reject; rejected_videos + rejected_clips = the sum of rejects.
    bucket_weights: how often to draw a clip of each bucket, for every bucket to count the same; their mean over the
    clips is 1.
    """
    made_with = settings(config)
    rejects = dict(sorted(written.reasons.items()))
    filled = sum(1 for count in written.buckets if count)
    weights = [written.clips / (filled * count) if count else 0.0 for count in written.buckets]
    return {
        **made_with,
        "counts": {
            "videos": len(written.videos),
            "clips": written.clips,
            "rejected_videos": written.rejected_videos,
            "rejected_clips": sum(rejects.values()) - written.rejected_videos,
            "rejects": rejects,
        },
        "bucket_histogram": written.buckets,
        "bucket_weights": weights if config.balance else None,
        "fingerprint": hashlib.sha256(json.dumps([made_with, written.identity]).encode()).hexdigest(),
    }
