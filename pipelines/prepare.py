"""Videos to a training dataset: rows -> spans -> clips -> score -> latents -> Parquet, on Ray Data.

Knows the picture, the resources of each stage and what a finished dataset is. What happens to one clip is clips.py.

Exactly once: a part is written whole, named by the ids in it, and what parts and rejects hold is known before anything
is decoded. So the same command finishes a job that was killed at any moment, and a finished job changes no file. A
reject is a result: delete OUT/rejects to have them tried again. A decoder that kills its process fails the job after
Ray's retries of the task (three), rather than being tried for ever.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from cinemo import checkpoint
from cinemo.motion import NUM_BUCKETS, SCORE_DEFINITION
from cinemo.video import SAMPLING_VERSION
from pipelines import clips, parts, records, sources, storage, tracking
from pipelines.progress import Progress

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

DEFAULT_SIZE = (320, 512)  # the paper's, for a model directory that states none


class PrepareConfig(clips.SamplingConfig, frozen=True):
    """What the prepare job takes: sampling, and where from, where to, with which model."""

    input: str = Field(description="folder of videos, or a CSV file with WebVid's columns")
    output: str = Field(description="folder or URI of the dataset; the same command again finishes what is there")
    model: str = Field("builtin:tiny", description="model whose VAE encodes: builtin:tiny, a directory, or a hub id")
    height: int | None = Field(None, ge=64, multiple_of=8, description="pixels; default: the model's, else 320")
    width: int | None = Field(None, ge=64, multiple_of=8, description="pixels; default: the model's, else 512")
    embed_text: bool = Field(False, description="store text embeddings too, so that training needs no text encoder")
    encoders: int = Field(1, ge=1, description="processes that run the VAE, one CPU each")
    gpus: int = Field(0, ge=0, description="GPUs for the VAE, one process each, in place of --encoders")
    clips_per_file: int = Field(32, ge=1, description="clips in a Parquet file, and what a kill at most makes do again")
    max_reject_fraction: float = Field(0.5, ge=0, le=1, description="exit 3 when more than this share was rejected")
    tracking_uri: str | None = Field(
        None, description="MLflow server or database; default: mlflow.db beside the output"
    )


def build(config: PrepareConfig) -> "ray.data.Dataset":
    """The dataflow, lazily. Its rows are the parts as they are written: (clips, rejects), both counts."""
    import ray.data

    size = frame_size(config)

    # 1. One row a video: paths and captions only, so that blocks stay small however many there are. At least 64
    #    blocks where there are videos enough, so that every core has work; at most 64 videos in one.
    table = sources.read(config.input)
    step = min(64, max(1, table.num_rows // 64))
    videos = ray.data.from_arrow([table.slice(i, step) for i in range(0, table.num_rows, step)])

    # 2. Spans with content ids; what is done leaves here, before a byte is decoded.
    done = ray.put(parts.done(config.output))
    spans = videos.map_batches(
        span_block, fn_args=(config, size, done), batch_size=None, batch_format="pyarrow", num_cpus=1
    )

    # 3. Decode, score and bucket in one task: frames travel once. One CPU, because the decoder runs one thread.
    decoded = spans.map_batches(
        decode_block, fn_args=(config.num_frames, size), batch_size=None, batch_format="pyarrow", num_cpus=1
    )

    # 4. Latents. A fixed pool, because loading a VAE is slow; frames end here. Not quite the CPU that decoding takes:
    #    Ray fuses neighbours with equal needs, and then the encoders would decode as well, with the other cores idle.
    device = "cuda" if config.gpus else "cpu"
    encoded = decoded.map_batches(
        clips.Encoder,
        fn_constructor_args=(config.model, config.num_frames, size, config.embed_text, device),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.gpus or config.encoders),
        num_gpus=1 if config.gpus else 0,
        num_cpus=0.99,
    )

    # 5. Parts, each named by what is in it. A quarter of a CPU: it mostly waits for storage.
    return encoded.map_batches(
        write_block,
        fn_args=(config.output, size),
        batch_size=config.clips_per_file,
        batch_format="pyarrow",
        num_cpus=0.25,
    )


def span_block(videos: pa.Table, config: clips.SamplingConfig, size: tuple[int, int], done: Any) -> Iterator[pa.Table]:
    """A block of videos -> the spans and rejects that are not done yet. done: a reference to the set of their keys."""
    import ray

    finished = ray.get(done)
    for video in records.iter_rows(videos):
        rows = [row for row in clips.make_spans(video, config, size) if parts.key(row) not in finished]
        yield pa.Table.from_pylist(rows, schema=records.ROW)


def decode_block(spans: pa.Table, num_frames: int, size: tuple[int, int]) -> Iterator[pa.Table]:
    """A block of spans -> one table for each clip, so that Ray may pass them on before the block is done."""
    for row in records.iter_rows(spans):
        yield records.row_table(clips.decode(row, num_frames, size))


def write_block(rows: pa.Table, output: str, size: tuple[int, int]) -> pa.Table:
    """Encoded rows and rejects -> files below output; returns how many of each."""
    good, bad = parts.write(rows.to_pylist(), output, size)
    return pa.table({"clips": [good], "rejects": [bad]})


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
    chosen = config.model_dump(include={*clips.SamplingConfig.model_fields, "embed_text"})
    return {
        "schema_version": records.SCHEMA_VERSION,
        "score_definition": SCORE_DEFINITION,
        "sampling_version": SAMPLING_VERSION,
        "input": storage.absolute(config.input),
        **chosen,
        "height": height,
        "width": width,
        "vae_fingerprint": checkpoint.fingerprint(directory / checkpoint.vae_name(directory)),
        "text_fingerprint": checkpoint.fingerprint(directory / "text_encoder") if config.embed_text else None,
    }


def check(config: PrepareConfig) -> None:
    """Refuse what cannot work, before a cluster is touched: raises ValueError for the source, the model, the output."""
    sources.read(config.input)
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
    with tracking.start("prepare", output, config.tracking_uri, config.model_dump()) as log:
        wanted = {video["uri"] for video in sources.read(config.input).select(["uri"]).to_pylist()}
        if storage.read_json(storage.join(output, "dataset.json")) is None or wanted - parts.videos(output):
            storage.put_json(storage.join(output, "settings.json"), settings(config))
            storage.remove(storage.join(output, "dataset.json"))  # not finished any more
            done = len(parts.done(output))
            # At most this many: a reject of a whole video stands for all of its clips.
            progress = Progress("prepare", "clips", max(done, len(wanted) * config.clips_per_video), began=done)
            for part in build(config).iter_rows():
                progress.add(part["clips"] + part["rejects"])
        parts.drop_duplicates(output)
        if lost := wanted - parts.videos(output):
            raise RuntimeError(f"{len(lost)} videos left no row in {output}; is it the same place on every node?")
        manifest = describe(output, settings(config))
        storage.put_json(storage.join(output, "dataset.json"), manifest)
        counts, seconds = manifest["counts"], time.monotonic() - began
        rejects = sum(counts["rejects"].values())
        log.tags({"dataset_fingerprint": manifest["fingerprint"], "vae_fingerprint": manifest["vae_fingerprint"]})
        log.metrics({"clips": counts["clips"], "videos": counts["videos"], "seconds": seconds})
        log.metrics({f"rejects_{reason}": count for reason, count in counts["rejects"].items()})
        log.picture("bucket_histogram.png", tracking.bars(manifest["bucket_histogram"], "motion bucket", "clips"))
    return {
        "job": "prepare",
        "output": output,
        "counts": counts,
        "too_many_rejects": rejects > config.max_reject_fraction * (counts["clips"] + rejects),
        "bucket_histogram": manifest["bucket_histogram"],
        "fingerprint": manifest["fingerprint"],
        "seconds": round(seconds, 2),
    }


def describe(output: str, made_with: dict[str, Any]) -> dict[str, Any]:
    """dataset.json: the settings, and counts that are read back from the files. No clock in it: a rerun says the same.

    videos = those with a clip + those with none but a reject; rejected_videos + rejected_clips = the sum of rejects.
    """
    good, bad = parts.read_good(output), parts.read_bad(output)
    ids, buckets = sorted(good["clip_id"].to_pylist()), Counter(good["bucket"].to_pylist())
    whole = bad["start_frame"].null_count
    identity = json.dumps([made_with, ids, sorted(bad["uri"].to_pylist())])
    return {
        **made_with,
        "counts": {
            "videos": len({*good["uri"].to_pylist(), *bad["uri"].to_pylist()}),
            "clips": len(ids),
            "rejected_videos": whole,
            "rejected_clips": bad.num_rows - whole,
            "rejects": dict(sorted(Counter(bad["reason"].to_pylist()).items())),
        },
        "bucket_histogram": [buckets[bucket] for bucket in range(NUM_BUCKETS)],
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
    }
