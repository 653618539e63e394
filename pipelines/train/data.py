"""Training data: a dataset that the prepare job wrote, or videos, whose clips are made while the model trains."""

import hashlib
import json
from typing import Any

from pipelines import sources
from pipelines.core import storage
from pipelines.dataset import manifest, reader
from pipelines.prepare import flow
from pipelines.prepare.config import ExtractConfig
from pipelines.train.config import TrainConfig


def is_stream(uri: str) -> bool:
    """Return True when --dataset names videos, False when it names a dataset, finished or not."""
    return not any(storage.exists(storage.join(uri, name)) for name in ("dataset.json", "settings.json"))


def check(config: TrainConfig) -> None:
    """Check that --dataset is a finished dataset or a source of videos. Raises ValueError."""
    if not is_stream(config.dataset):
        reader.read_description(config.dataset)
        return
    try:
        sources.check(config.dataset, config.stream.uri_column, config.stream.caption_column)
    except ValueError as error:
        problem = str(error).removeprefix(f"--input {config.dataset}: ")
        raise ValueError(
            f"--dataset {config.dataset} holds no dataset.json, so it is not an output of ray_jobs/prepare.py; "
            f"as a source of videos: {problem}"
        ) from error


def describe(config: TrainConfig) -> dict[str, Any]:
    """Read dataset.json; for videos, make what it would contain, without counts. Raises ValueError."""
    if not is_stream(config.dataset):
        return reader.read_description(config.dataset)
    description = {"input": storage.absolute(config.dataset), **flow.identity(extract_config(config))}
    return {**description, "fingerprint": hashlib.sha256(json.dumps(description).encode()).hexdigest()}


def extract_config(config: TrainConfig) -> ExtractConfig:
    """Settings of the clips of a stream: those of --stream, with the VAE of the model that is trained."""
    return config.stream.model_copy(update={"model": config.source_model})


def start(config: TrainConfig, output: str) -> Any:
    """Start the actor that makes clips of videos (stream.py), on the driver; returns None for a prepared dataset."""
    if not is_stream(config.dataset):
        return None
    import ray

    from pipelines.train.stream import Stream

    stream = config.stream
    videos = sources.iter_videos(config.dataset, stream.uri_column, stream.caption_column)
    files, hashes = manifest.write(videos, storage.join(output, "videos"))
    held_out = reader.is_held_out(hashes, config.validation_share)
    # The actor outlives the workers. When its node is lost, Ray starts it anew, and a worker calls `begin` again.
    actor = ray.remote(num_cpus=0, max_restarts=-1)(Stream)
    hashes_of = (hashes[~held_out], hashes[held_out])
    return actor.remote(
        extract_config(config), files, hashes_of, config.validation_clips, config.total_batch, config.seed
    )


def open_clips(config: TrainConfig, stream: Any) -> reader.Clips:
    """Open the clips on a worker. stream: what `start` returned on the driver."""
    if stream is None:
        return reader.ClipReader(config.dataset, config.validation_share)
    from pipelines.train.stream import StreamReader

    return StreamReader(stream)
