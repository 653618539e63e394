"""Turn videos into encoded clips on Ray Data: manifest -> spans -> frames -> score -> latents.

Defines the stages and their resources; clips.py does the work on one clip. The prepare job writes the rows, streaming
training consumes them directly.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cinemo import checkpoint
from cinemo.motion import SCORE_DEFINITION
from cinemo.video import SAMPLING_VERSION
from pipelines.core import hashing, models, storage
from pipelines.dataset import manifest, parts, records
from pipelines.prepare import clips, shapes
from pipelines.prepare.config import ExtractConfig, SamplingConfig
from pipelines.prepare.shapes import Size

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

ASPECT_BUCKETS = 5  # default of --aspect-buckets
DECODER_CPUS, ENCODER_CPUS = 0.5, 0.4  # CPUs that Ray sets aside for each decoder and each encoder, without GPUs
COLUMNS = ("uri_column", "caption_column")  # flags that choose what is read of a table
NOTHING = np.empty(0, np.uint64)  # no hashes


def extract(
    config: ExtractConfig,
    made_with: Mapping[str, Any],
    slices: pa.Table,
    written: np.ndarray,
    finished: np.ndarray,
    left_out: np.ndarray = NOTHING,
    in_order: bool = False,
) -> "ray.data.Dataset":
    """Build the lazy dataflow from slices of a manifest to rows of records.ROW: clips with their tensors, and rejects.

    made_with: `identity` when the job began; a model with other fingerprints ends the job.
    written: sorted hashes of rows to skip (parts.keys). finished: sorted hashes of the names (records.name_of) of
    videos or segments that need not be opened. left_out: sorted hashes of uris to skip with all their segments.
    in_order: rows come in the order of the slices, not in that of completion.
    """
    import ray.data

    sizes = frame_sizes(config)
    # A cluster that scales up on demand may have no CPU yet; then the flags say how large it will be.
    cpus = max(int(ray.cluster_resources().get("CPU", 1)), config.encoders or 0, config.gpus)
    bound_memory(config, sizes, cpus)
    ray.data.DataContext.get_current().execution_options.preserve_order = in_order

    # 1. Slices of the manifest: each a file name and two numbers, however many videos there are.
    videos = ray.data.from_arrow([slices.slice(i, 1) for i in range(slices.num_rows)])

    # 2. Spans with content ids; finished clips are dropped here, before anything is decoded. Then decode, score and
    #    bucket in the same task, so that frames travel once. With GPUs each decoder has a core. Without, decoders and
    #    encoders have half a core each: two processes per core, so that the slower stage uses what the other leaves.
    taken = videos.map_batches(
        take_slice,
        fn_args=(config, sizes, ray.put((written, finished, left_out))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1 if config.gpus else DECODER_CPUS,
    )
    if config.score_only:
        return taken

    # 3. Latents; frames are dropped here. A fixed pool, because loading a VAE is slow. Less than decoding's half core,
    #    because Ray fuses neighbouring stages with equal resources, and then the encoders would decode.
    device = "cuda" if config.gpus else "cpu"
    return taken.map_batches(
        clips.Encoder,
        fn_constructor_args=(config.model, made_with, device),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(slices.num_rows, config.gpus or config.encoders or cpus)),
        num_gpus=1 if config.gpus else 0,
        num_cpus=ENCODER_CPUS,
    )


def bound_memory(config: ExtractConfig, sizes: Sequence[Size], cpus: int) -> None:
    """Limit the data in flight to some clips per core, however many videos wait: blocks are a few clips at most."""
    import ray.data

    clip = config.lengths[-1] * max(height * width for height, width in sizes) * 3
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = max(clip, 4 << 20)
    # The default, half of the object store, is filled by a long job though a short one needs little.
    room = max(64 << 20, 6 * (cpus + config.gpus) * context.target_max_block_size)
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(object_store_memory=room)


def take_slice(slices: pa.Table, config: ExtractConfig, sizes: Sequence[Size], done: Any) -> Iterator[pa.Table]:
    """Yield a table for each unfinished clip or reject of slices of the manifest, in its order.

    done: a reference to the three sorted arrays of hashes that `extract` takes.
    """
    import ray

    rows, finished, left_out = ray.get(done)
    run = clips.in_sandbox(config.clip_timeout)
    for part in slices.to_pylist():
        videos = list(manifest.read_slice(**part))
        skip = hashing.is_among(hashing.hash64(map(records.name_of, videos)), finished)
        skip |= hashing.is_among(hashing.hash64(video["uri"] for video in videos), left_out)
        for video in (video for video, over in zip(videos, skip, strict=True) if not over):
            spans = clips.make_spans(video, config, sizes, run)
            for span, written in zip(spans, hashing.is_among(parts.keys(spans), rows), strict=True):
                if not written:
                    yield records.row_table(clips.decode({"reason": None, **span}, config, run))


def frame_sizes(config: ExtractConfig) -> list[Size]:
    """Sizes (H, W) in pixels: from the flags, else the model's first trained size, else the paper's.

    Raises ValueError for a size that the VAE cannot encode. Training checks whether the U-Net takes it.
    """
    directory = models.resolve(config.model)
    factor = 1 if config.score_only else models.factor(directory)
    if config.area is not None:
        return shapes.sizes_of_area(config.area, config.aspect_buckets or ASPECT_BUCKETS, factor)
    if config.sizes is not None:
        sizes, flag = shapes.read_sizes(config.sizes), "--sizes"
    elif config.height is not None and config.width is not None:
        sizes, flag = [(config.height, config.width)], "--height and --width"
    else:
        return [checkpoint.read_card(directory).size]
    for height, width in sizes:
        if height % factor or width % factor:
            raise ValueError(
                f"{flag}: {width}x{height} does not divide into the {factor}-pixel cells of --model {config.model}; "
                f"take multiples of {factor}"
            )
    return sizes


def clip_shapes(config: ExtractConfig) -> list[records.Shape]:
    """Shapes that clips may have, by the flags: (frames, height, width) each."""
    return [(length, *size) for length in config.lengths for size in frame_sizes(config)]


def identity(config: ExtractConfig) -> dict[str, Any]:
    """All settings that change a video's rows, by the name of their flag."""
    directory = models.resolve(config.model)
    sizes = frame_sizes(config)
    height, width = sizes[0] if len(sizes) == 1 else (None, None)
    # With one size the settings are those of earlier versions, whose outputs can so be continued.
    several: dict[str, Any] = {} if len(sizes) == 1 else {"sizes": ",".join(f"{w}x{h}" for h, w in sizes)}
    limit = clips.enlargement_limit(config, sizes)
    several |= {} if limit is None else {"max_enlargement": limit}
    several |= config.model_dump(include={*COLUMNS}, exclude_none=True)
    kinds = {"score_only", "store_posterior", "embed_text"}
    vae = None if config.score_only else models.fingerprint(directory / checkpoint.vae_name(directory))
    return {
        "schema_version": records.SCHEMA_VERSION,
        "score_definition": SCORE_DEFINITION,
        "sampling_version": SAMPLING_VERSION,
        **config.model_dump(include={*SamplingConfig.model_fields, *kinds}, exclude={"max_enlargement"}),
        "height": height,
        "width": width,
        **several,
        "vae_fingerprint": vae,
        "text_fingerprint": models.fingerprint(directory / "text_encoder") if config.embed_text else None,
    }


def columns_of(made_with: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of COLUMNS in an identity, None for a missing one, so that a flag that was left out is compared, too."""
    return {prefix + name: made_with.get(prefix + name) for name in COLUMNS}


def check_columns(output: str, asked: Mapping[str, Any]) -> None:
    """Refuse a column that the output's settings do not name. asked: from `columns_of`. Raises ValueError.

    Earlier versions never stored these flags. So such an output was made without the flag or, by an earlier version,
    with it, and nothing in it tells which. In the first case, going on would silently mix rows of two columns.
    """
    stored = storage.read_json(storage.join(output, "settings.json"))
    for name, value in asked.items():
        if stored is not None and value is not None and name not in stored:
            raise ValueError(
                f"--{name.replace('_', '-')} {value}: {output} was made without this flag, or by an earlier version, "
                "which did not store it; leave it out, give another --output or, if it was made with the same flag, "
                f"add {json.dumps(name)}: {json.dumps(value)} to its settings.json"
            )
