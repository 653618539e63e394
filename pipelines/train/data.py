"""What a run trains on: a dataset that the prepare job wrote, or videos, whose clips are made on the way.

Knows how to tell the two apart, to describe them alike, and to open either. Knows nothing of steps or engines.
"""

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
    """Whether --dataset names videos. A dataset that is not finished is none, and not videos either."""
    return not any(storage.exists(storage.join(uri, name)) for name in ("dataset.json", "settings.json"))


def check(config: TrainConfig) -> None:
    """Raises ValueError when --dataset is neither a finished dataset nor a source of videos."""
    if not is_stream(config.dataset):
        reader.read_description(config.dataset)
        return
    try:
        sources.check(config.dataset, config.stream.uri_column, config.stream.caption_column)
    except ValueError as error:
        problem = str(error).removeprefix(f"--input {config.dataset}: ")
        raise ValueError(
            f"--dataset {config.dataset} holds no dataset.json, so it is no output of ray_jobs/prepare.py; "
            f"and as a source of videos: {problem}"
        ) from error


def describe(config: TrainConfig) -> dict[str, Any]:
    """dataset.json of what the prepare job wrote; of videos what it would say, without counts. Raises ValueError."""
    if not is_stream(config.dataset):
        return reader.read_description(config.dataset)
    found = {"input": storage.absolute(config.dataset), **flow.identity(extraction(config))}
    return {**found, "fingerprint": hashlib.sha256(json.dumps(found).encode()).hexdigest()}


def extraction(config: TrainConfig) -> ExtractConfig:
    """How clips of a stream are made: as --stream says, with the VAE of the model that is trained."""
    return config.stream.model_copy(update={"model": config.source_model})


def start(config: TrainConfig, output: str) -> Any:
    """The driver's part: an actor that makes clips of videos (stream.py), or None for a prepared dataset."""
    if not is_stream(config.dataset):
        return None
    import ray

    from pipelines.train.stream import Stream

    stream = config.stream
    videos = sources.iter_videos(config.dataset, stream.uri_column, stream.caption_column)
    files, hashes = manifest.write(videos, storage.join(output, "videos"))
    held_out = reader.is_held_out(hashes, config.validation_share)
    # It outlives the workers, and a node: then it starts anew, and the workers say where to begin.
    actor = ray.remote(num_cpus=0, max_restarts=-1)(Stream)
    videos_of = (hashes[~held_out], hashes[held_out])
    return actor.remote(extraction(config), files, videos_of, config.validation_clips, config.total_batch, config.seed)


def open_clips(config: TrainConfig, stream: Any) -> Any:
    """The worker's part: a reader.ClipReader, or a reader of the stream with the same methods."""
    if stream is None:
        return reader.ClipReader(config.dataset, config.validation_share)
    from pipelines.train.stream import StreamReader

    return StreamReader(stream)
