"""A prepared dataset, as training reads it: its description, the videos held out, and clips by position and in order.

Single clips are read from Parquet when they are needed, so that a worker's memory does not grow with the dataset. The
order depends on (seed, epoch) alone: not on files, workers or speed.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq

from pipelines.core import hashing, storage
from pipelines.dataset import records

_SPLIT = 1_000_000  # parts that the hashes of all videos are divided into; a share of the videos is some of them


@dataclass(frozen=True)
class Clip:
    """One training clip.

    latents: float32 (N, C, h, w), scaled. text_embeds: float32 (T, D), or None when the dataset has none. first_frame:
    a WebP file, or None when the dataset has none.
    """

    clip_id: str
    caption: str
    bucket: int
    latents: np.ndarray
    text_embeds: np.ndarray | None
    first_frame: bytes | None = None


class Clips(Protocol):
    """Clips to train on, by number: those of a prepared dataset (ClipReader) or of a stream of videos.

    A clip has one number for the whole run, in every worker. Numbers of clips that are held out are never in a batch.
    """

    def begin(self, number: int, cursor: Sequence[int] | None) -> None:
        """Prepare to read from clip `number` on. One worker calls this before any worker reads a clip.

        cursor: what `cursor(number)` returned, as it comes out of a checkpoint; None at the first clip.
        """

    def cursor(self, number: int) -> Sequence[int] | None:
        """Return what `begin` needs, besides the number, to go to clip `number`: a value that JSON can hold."""

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Numbers of the clips of a step's whole batch, over all workers; steps count from 0."""

    def held_out(self, most: int) -> list[int]:
        """Numbers of the clips to validate on, `most` at most; after `begin`."""

    def __getitem__(self, number: int) -> Clip:
        """Read a clip."""


def read_description(uri: str) -> dict[str, Any]:
    """Read dataset.json. Raises ValueError when there is none, or its schema version is another."""
    found = storage.read_json(storage.join(uri, "dataset.json"))
    if found is None:
        raise ValueError(f"--dataset {uri} holds no dataset.json; run or finish ray_jobs/prepare.py with this output")
    if found.get("schema_version") != records.SCHEMA_VERSION:
        raise ValueError(
            f"--dataset {uri} has schema version {found.get('schema_version')}, this code reads "
            f"{records.SCHEMA_VERSION}; prepare it again"
        )
    return found


def clip_of_row(row: Mapping[str, Any]) -> Clip:
    """Make a clip of an encoded row (records.ROW): the clip that reading the row from a dataset would give."""
    tensors = {
        name: np.frombuffer(row[name], np.float16).reshape(row[shape]).astype(np.float32)
        for name, shape in (("latents", "latents_shape"), ("text_embeds", "text_shape"))
        if row[name] is not None
    }
    text = tensors.get("text_embeds")
    return Clip(row["clip_id"], row["caption"], row["bucket"], tensors["latents"], text, row.get("first_frame"))


def is_held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Choose the videos to hold out for validation, by the hashes of their uris alone (hashing.hash64).

    share: of all videos. Returns a boolean for each hash.
    """
    return hashes % np.uint64(_SPLIT) < np.uint64(round(share * _SPLIT))


def count_clips(uri: str, share: float, enough: int) -> int:
    """Count the clips to train on when a share of the videos is held out; stops counting at `enough`."""
    count = 0
    for name in storage.list_files(storage.join(uri, "data"), (".parquet",)):
        uris = _open(name).read(columns=["uri"])["uri"].to_pylist()
        count += int((~is_held_out(hashing.hash64(uris), share)).sum())
        if count >= enough:
            break
    return count


class ClipReader:
    """Clips of a prepared dataset by position: 0..len-1 in the order of their ids, whatever files they are in.

    Clips of videos that are held out have the positions from len on. Implements Clips.
    """

    def __init__(self, uri: str, share: float = 0.0) -> None:
        """uri: the dataset. share: part of its videos to hold out."""
        self.files = storage.list_files(storage.join(uri, "data"), (".parquet",))
        ids: list[str] = []
        held_out = [np.empty(0, bool)]
        places: list[tuple[int, int, int]] = []
        for number, name in enumerate(self.files):
            file = _open(name)
            columns = file.read(columns=["clip_id", "uri"])
            ids += columns["clip_id"].to_pylist()
            held_out.append(is_held_out(hashing.hash64(columns["uri"].to_pylist()), share))
            for group in range(file.metadata.num_row_groups):
                places += [(number, group, row) for row in range(file.metadata.row_group(group).num_rows)]
            assert len(ids) == len(places), name
        held = np.concatenate(held_out)
        self.places = np.array(places, np.int32).reshape(-1, 3)[np.lexsort((np.array(ids), held))]
        self.count = len(ids) - int(held.sum())
        # Holds the row groups of a few steps. More would not help: clips of one group are rarely read together.
        self._group = functools.lru_cache(maxsize=32)(self._read_group)

    def __len__(self) -> int:
        return self.count

    def held_out(self, most: int) -> list[int]:
        """Positions of the first clips that are held out, `most` at most."""
        return list(range(len(self), len(self.places)))[:most]

    def buckets(self) -> np.ndarray:
        """Motion bucket of each clip to train on, by position: uint8 (len,). Reads one column of every file."""
        found = [_open(name).read(columns=["bucket"])["bucket"].to_numpy() for name in self.files]
        groups = np.concatenate([np.empty(0, np.uint8), *found])
        # A place's number in the dataset: its row, after the rows of the row groups and files before it.
        by_place = np.lexsort(self.places.T[::-1])
        of_position = np.empty(len(groups), np.uint8)
        of_position[by_place] = groups
        return of_position[: len(self)]

    def begin(self, number: int, cursor: Sequence[int] | None) -> None:
        """Do nothing: any clip can be read at any time."""

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Positions of the clips of a step's whole batch, over all workers."""
        return batch_positions(len(self), total_batch, seed, step)

    def cursor(self, number: int) -> None:
        """Return None: a position is enough to read a clip."""

    def __getitem__(self, position: int) -> Clip:
        number, group, row = (int(value) for value in self.places[position])
        table = self._group(number, group)
        names = [name for name in ("clip_id", "caption", "bucket", "first_frame") if name in table.column_names]
        values = {name: table[name][row].as_py() for name in names}
        text = _tensor(table, "text_embeds", row) if "text_embeds" in table.column_names else None
        return Clip(**values, latents=_tensor(table, "latents", row), text_embeds=text)

    def _read_group(self, number: int, group: int) -> Any:
        return _open(self.files[number]).read_row_group(group)


def _open(uri: str) -> pq.ParquetFile:
    files, path = storage.filesystem(uri)
    return pq.ParquetFile(path, filesystem=files)


def _tensor(table: Any, name: str, row: int) -> np.ndarray:
    column = table[name].slice(row, 1).combine_chunks()
    return column.to_numpy_ndarray()[0].astype(np.float32)


def batch_positions(count: int, total_batch: int, seed: int, step: int) -> list[int]:
    """Positions of the clips of one step's whole batch, over all workers; steps count from 0.

    Each epoch is a permutation of all clips by (seed, epoch); a batch may extend into the next epoch.
    """
    places = range(step * total_batch, (step + 1) * total_batch)
    return [int(_permutation(count, seed, place // count)[place % count]) for place in places]


def micro_batches(batch: Sequence[int], rank: int, world_size: int, size: int) -> list[list[int]]:
    """Positions that one worker takes of a step's batch: a list of `size` for each gradient accumulation step.

    Where the batch does not divide, the last lists are shorter, or empty.
    """
    starts = range(0, len(batch), world_size * size)
    return [list(batch[start + rank * size : start + (rank + 1) * size]) for start in starts]


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
