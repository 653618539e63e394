"""What a run starts from: clips, of a dataset or made from videos while the model trains, and the initial weights.

Importing this module loads neither torch nor DeepSpeed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from cinemo import checkpoint
from pipelines import sources
from pipelines.core import models, storage
from pipelines.core.progress import to_stderr
from pipelines.dataset import index, manifest, reader, records
from pipelines.dataset.balance import BalancedClips
from pipelines.dataset.order import ALWAYS_DRAWN, DRAWN_UP_TO
from pipelines.prepare import flow
from pipelines.prepare.config import ExtractConfig
from pipelines.train.config import TrainConfig

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    from cinemo.unet import CinemoUNet


class PreparedDataset(NamedTuple):
    """Facts that the driver finds about a dataset, and that workers need to open it.

    drawn_up_to: passed to order.EpochOrder. bucket_weights: None if clips are not balanced.
    """

    index_uri: str
    drawn_up_to: int
    bucket_weights: list[float] | None


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
    # Without the column flags, which job.py compares, fingerprints equal those of runs that earlier versions began.
    hashed = {name: value for name, value in description.items() if name not in flow.COLUMNS}
    return {**description, "fingerprint": hashlib.sha256(json.dumps(hashed).encode()).hexdigest()}


def extract_config(config: TrainConfig) -> ExtractConfig:
    """Settings of the clips of a stream: those of --stream, with the VAE of the model that is trained."""
    return config.stream.model_copy(update={"model": config.source_model})


def divide_cpus(config: TrainConfig) -> tuple[float, int | None]:
    """Divide CPUs: (CPUs that Ray sets aside for each worker, number of a stream's encoders; None: one a CPU)."""
    import ray

    cpus = ray.cluster_resources().get("CPU", 0.0)
    if not is_stream(config.dataset) or config.gpu or config.stream.gpus or not cpus:
        return 1.0, config.stream.encoders
    return share_cpus(cpus, most_workers(config), config.stream.encoders)


def most_workers(config: TrainConfig) -> int:
    """Largest number of workers. A LOW:HIGH run takes all that Ray has, so a stream keeps CPUs to decode with."""
    import ray

    low, high = config.workers
    cpus = ray.cluster_resources().get("CPU", 0.0)
    if not is_stream(config.dataset) or config.gpu or config.stream.gpus or not cpus:
        return high
    others = flow.DECODER_CPUS + flow.ENCODER_CPUS * (config.stream.encoders or 1)
    return max(low, min(high, int(cpus - others)))


def share_cpus(cpus: float, workers: int, encoders: int | None) -> tuple[float, int]:
    """Divide a cluster's CPUs among workers, encoders and at least one decoder: (CPUs of each worker, encoders).

    A worker gets one CPU, or less: on two cores, two workers with one each would wait for ever for clips, because Ray
    would have no CPU left to make them. encoders: None for as many as there is room for.
    """
    others = flow.DECODER_CPUS + flow.ENCODER_CPUS * (encoders or 1)
    share = max(0.05, min(1.0, int((cpus - others) / workers * 100) / 100))
    room = int((cpus - share * workers - flow.DECODER_CPUS) / flow.ENCODER_CPUS + 1e-6)
    return share, encoders or max(1, room)


def start(config: TrainConfig, output: str, description: dict[str, Any] | None = None) -> Any:
    """Prepare the source of clips, on the driver; returns what `open_clips` takes.

    For a dataset, a PreparedDataset, whose index is made below the output if the dataset has none; for videos, an actor
    that makes clips (stream.py). Raises ValueError when the dataset's files are not those that it was finished with.
    description: from `describe` when the job began.
    """
    made_with = description or describe(config)
    if not is_stream(config.dataset):
        found = index.find(config.dataset, made_with, storage.join(output, "index"), to_stderr)
        clips = reader.ClipReader(config.dataset, config.validation_share, found)
        if left_out := clips.left_out(config.total_batch):
            to_stderr(
                f"warning: {left_out} of {len(clips)} clips are not trained on, because their shapes have fewer clips "
                f"than --total-batch {config.total_batch}; lower it, or prepare with fewer --sizes"
            )
        weights = made_with["bucket_weights"] if config.balance_buckets else None
        return PreparedDataset(found, drawn_up_to(output), weights)
    import ray

    from pipelines.train.stream import Stream

    files, hashes = write_list(config, output)
    held_out = reader.is_held_out(hashes, config.validation_share)
    # The actor outlives the workers. When its node is lost, Ray starts it anew, and a worker calls `begin` again.
    actor = ray.remote(num_cpus=0, max_restarts=-1)(Stream)
    hashes_of = (hashes[~held_out], hashes[held_out])
    settings = extract_config(config).model_copy(update={"encoders": divide_cpus(config)[1]})
    return actor.remote(settings, made_with, files, hashes_of, config.validation_clips, config.total_batch, config.seed)


def write_list(config: TrainConfig, output: str) -> tuple[dict[str, int], np.ndarray]:
    """Store the list of videos below the output; returns what manifest.write does.

    Raises ValueError when the run began with another list: its checkpoints name places in a permutation of that list.
    """
    digest = hashlib.sha256()

    def hashed(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for table in tables:
            digest.update(json.dumps(records.names_of(table).to_pylist()).encode())
            yield table

    stream = config.stream
    videos = sources.iter_videos(config.dataset, stream.uri_column, stream.caption_column)
    written = manifest.write(hashed(videos), storage.join(output, "videos"))
    place, found = storage.join(output, "videos.json"), {"sha256": digest.hexdigest()}
    begun = storage.read_json(place)
    if begun is None:
        storage.put_json(place, found)
    elif begun != found:
        raise ValueError(
            f"--dataset {config.dataset} lists other videos than when this run began; restore the list, or give "
            "another --output"
        )
    return written


def drawn_up_to(output: str) -> int:
    """Largest number of clips whose order this run draws (order.EpochOrder): the one with which it began."""
    begun = storage.read_json(storage.join(output, "settings.json"))
    return DRAWN_UP_TO if begun is None else begun.get("drawn_up_to", ALWAYS_DRAWN)


def open_clips(config: TrainConfig, source: Any) -> reader.Clips:
    """Open the clips on a worker. source: what `start` returned on the driver."""
    if isinstance(source, PreparedDataset):
        clips = reader.ClipReader(config.dataset, config.validation_share, source.index_uri, source.drawn_up_to)
        return clips if source.bucket_weights is None else BalancedClips(clips, source.bucket_weights)
    from pipelines.train.stream import StreamReader

    return StreamReader(source)


def directory(config: TrainConfig) -> Path:
    """Directory, on this node, of the model that the run starts from (source_model). Raises ValueError."""
    return models.resolve(config.source_model)


def changed_model(config: TrainConfig, recorded: str) -> str | None:
    """Compare this node's model with the fingerprint recorded when the job began; returns a message if they differ."""
    try:
        models.check_unchanged(config.source_model, directory(config), recorded)
    except ValueError as error:
        return str(error)
    return None


def prediction_type(config: TrainConfig) -> str:
    """Prediction type of the U-Net: "epsilon", "v_prediction" or "sample"."""
    if config.prediction_type != "auto":
        return config.prediction_type
    return checkpoint.load_scheduler(directory(config)).config.prediction_type if config.has_model else "epsilon"


def load_unet(config: TrainConfig) -> "CinemoUNet":
    """Load the U-Net that --init names, in training mode: a model's, LaVie's, or random weights from the seed.

    With --lora-rank it has new adapters, drawn from the seed, and all other weights are frozen.
    """
    import torch

    from cinemo import lora
    from cinemo.unet import CinemoUNet

    torch.manual_seed(config.seed)  # the same random weights in every worker
    if config.init.startswith("lavie:"):
        unet = checkpoint.load_lavie(config.init.removeprefix("lavie:"))
    elif config.init == "none":
        unet = CinemoUNet.from_config(CinemoUNet.load_config(directory(config) / "unet"))
    else:
        unet = checkpoint.load_unet(directory(config))
    if config.lora_rank is not None:
        lora.add_adapter(unet, config.lora_rank, config.alpha, config.lora_targets, seed=config.seed)
    return unet.train()
