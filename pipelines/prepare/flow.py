"""Videos to encoded clips, on Ray Data: manifest -> spans -> frames -> score -> latents.

Knows the picture, and the resources of each stage. What happens to one clip is clips.py. Who wants the rows is not
known here: the prepare job writes them, training that streams takes them as they come.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cinemo import checkpoint
from cinemo.motion import SCORE_DEFINITION
from cinemo.video import SAMPLING_VERSION
from pipelines.core import hashing, models
from pipelines.dataset import manifest, parts, records
from pipelines.prepare import clips
from pipelines.prepare.config import ExtractConfig, SamplingConfig

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

NOTHING = np.empty(0, np.uint64)  # no hashes
DEFAULT_SIZE = (320, 512)  # the paper's, for a model directory that states none


def extract(
    config: ExtractConfig,
    slices: pa.Table,
    written: np.ndarray,
    finished: np.ndarray,
    left_out: np.ndarray = NOTHING,
    in_order: bool = False,
) -> "ray.data.Dataset":
    """Slices of a manifest -> rows of records.ROW, clips with their tensors and rejects, lazily.

    written: sorted hashes of rows that are not wanted (parts.keys). finished: sorted hashes of names (records.name_of)
    of videos or segments that are not even opened. left_out: the same, of uris, with all segments of these videos.
    in_order: rows come in the order of the slices, whichever is made first.
    """
    import ray.data

    size = frame_size(config)
    # A cluster that grows with its jobs may have no CPU yet: then what was asked for says how large it will be.
    cpus = max(int(ray.cluster_resources().get("CPU", 1)), config.encoders or 0, config.gpus)
    bound_memory(config, size, cpus)
    ray.data.DataContext.get_current().execution_options.preserve_order = in_order

    # 1. Slices of the manifest: a file name and two numbers, however many videos there are.
    videos = ray.data.from_arrow([slices.slice(i, 1) for i in range(slices.num_rows)])

    # 2. Spans with content ids (what is done leaves here, before a byte is decoded); then decode, score and bucket in
    #    the same task: frames travel once. With GPUs each decoder has a core. Without, decoders and encoders have half
    #    a core each, so that there are two processes a core and the slower stage gets what the other leaves.
    taken = videos.map_batches(
        take_slice,
        fn_args=(config, size, ray.put((written, finished, left_out))),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1 if config.gpus else 0.5,
    )
    if config.score_only:
        return taken

    # 3. Latents. A fixed pool, because loading a VAE is slow; frames end here. Less than the half core that decoding
    #    takes: Ray fuses neighbours with equal needs, and then the encoders would decode.
    encoder = (config.model, config.num_frames, size, config.embed_text, config.store_posterior)
    return taken.map_batches(
        clips.Encoder,
        fn_constructor_args=(*encoder, "cuda" if config.gpus else "cpu"),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(slices.num_rows, config.gpus or config.encoders or cpus)),
        num_gpus=1 if config.gpus else 0,
        num_cpus=0.4,
    )


def bound_memory(config: ExtractConfig, size: tuple[int, int], cpus: int) -> None:
    """Keep what is under way to some clips a core, however many videos wait: blocks are a clip or a few."""
    import ray.data

    clip = config.num_frames * size[0] * size[1] * 3
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = max(clip, 4 << 20)
    # The default is half of the object store, which a long job fills and a short one does not.
    room = max(64 << 20, 6 * (cpus + config.gpus) * context.target_max_block_size)
    context.execution_options.resource_limits = context.execution_options.resource_limits.copy(object_store_memory=room)


def take_slice(slices: pa.Table, config: ExtractConfig, size: tuple[int, int], done: Any) -> Iterator[pa.Table]:
    """Slices of the manifest -> a table for each clip or reject that is not done, in the order of the manifest.

    done: a reference to three sorted arrays of hashes, as `extract` takes them.
    """
    import ray

    rows, finished, left_out = ray.get(done)
    run = clips.in_sandbox(config.clip_timeout)
    for part in slices.to_pylist():
        videos = list(manifest.read_slice(**part))
        skip = hashing.is_among(hashing.hash64(map(records.name_of, videos)), finished)
        skip |= hashing.is_among(hashing.hash64(video["uri"] for video in videos), left_out)
        for video in (video for video, over in zip(videos, skip, strict=True) if not over):
            spans = clips.make_spans(video, config, size, run)
            for span, written in zip(spans, hashing.is_among(parts.keys(spans), rows), strict=True):
                if not written:
                    yield records.row_table(clips.decode({"reason": None, **span}, config, size, run))


def frame_size(config: ExtractConfig) -> tuple[int, int]:
    """(H, W) in pixels: the flags, else the model's first trained size, else the paper's.

    Any size is encoded; whether a U-Net takes it, training checks.
    """
    if config.height is not None and config.width is not None:
        return config.height, config.width
    sizes = checkpoint.read_card(models.resolve(config.model)).sizes
    return sizes[0] if sizes else DEFAULT_SIZE


def identity(config: ExtractConfig) -> dict[str, Any]:
    """Everything that changes a row of a video, by the name of its flag."""
    directory = models.resolve(config.model)
    height, width = frame_size(config)
    kinds = {"score_only", "store_posterior", "embed_text"}
    vae = None if config.score_only else models.fingerprint(directory / checkpoint.vae_name(directory))
    return {
        "schema_version": records.SCHEMA_VERSION,
        "score_definition": SCORE_DEFINITION,
        "sampling_version": SAMPLING_VERSION,
        **config.model_dump(include={*SamplingConfig.model_fields, *kinds}),
        "height": height,
        "width": width,
        "vae_fingerprint": vae,
        "text_fingerprint": models.fingerprint(directory / "text_encoder") if config.embed_text else None,
    }
