"""A prepared dataset, as training reads it: its description, what is held out, and clips by position and in order.

Reads single clips from Parquet when they are needed, so that a worker's memory does not grow with the dataset. The
order depends on (seed, epoch) alone: not on files, workers or speed. Knows nothing of models.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.core import hashing, storage
from pipelines.dataset import records

_SPLIT = 1_000_000  # a share of videos is that many of so many parts


@dataclass(frozen=True)
class Clip:
    """One training clip.

    latents: float32 (N, C, h, w), scaled. text_embeds: float32 (T, D), if they were prepared. first_frame: as WebP, if
    it was kept.
    """

    clip_id: str
    caption: str
    bucket: int
    latents: np.ndarray
    text_embeds: np.ndarray | None
    first_frame: bytes | None = None


def read_description(uri: str) -> dict[str, Any]:
    """dataset.json. Raises ValueError when there is none, or it is of another schema version."""
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
    """A row on its way (records.ROW, encoded) as training takes it: the same as when it is written and read again."""
    tensors = {
        name: np.frombuffer(row[name], np.float16).reshape(row[shape]).astype(np.float32)
        for name, shape in (("latents", "latents_shape"), ("text_embeds", "text_shape"))
        if row[name] is not None
    }
    text = tensors.get("text_embeds")
    return Clip(row["clip_id"], row["caption"], row["bucket"], tensors["latents"], text, row.get("first_frame"))


def is_held_out(hashes: np.ndarray, share: float) -> np.ndarray:
    """Which videos are kept for validation: that share of all, by the hashes of their uris alone (hashing.hash64)."""
    return hashes % np.uint64(_SPLIT) < np.uint64(round(share * _SPLIT))


def count_clips(uri: str, share: float, enough: int) -> int:
    """Clips to train on, when that share of the videos is held out; ends to count at `enough`."""
    count = 0
    for name in storage.list_files(storage.join(uri, "data"), (".parquet",)):
        uris = _open(name).read(columns=["uri"])["uri"].to_pylist()
        count += int((~is_held_out(hashing.hash64(uris), share)).sum())
        if count >= enough:
            break
    return count


class ClipReader:
    """Clips by position, 0..len-1 in the order of their ids, whatever files they are in.

    share: of the videos, are held out: their clips have the positions from len on, and no step's batch has them.
    """

    def __init__(self, uri: str, share: float = 0.0) -> None:
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
        # Enough to hold the row groups of a few steps; neighbours in a group are rarely wanted together.
        self._group = functools.lru_cache(maxsize=32)(self._read_group)

    def __len__(self) -> int:
        return self.count

    def held_out(self, most: int) -> list[int]:
        """Positions of the first clips that are held out."""
        return list(range(len(self), len(self.places)))[:most]

    def begin(self, number: int, cursor: Any) -> None:
        """Nothing: any clip can be read at any time."""

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Positions of the clips of a step's whole batch, over all workers."""
        return batch_positions(len(self), total_batch, seed, step)

    def cursor(self, number: int) -> None:
        """Nothing: a position says it all."""

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
    """Positions of the clips of one step's whole batch, over all workers; step counts from 0.

    Clips come in epochs, each a permutation of all of them by (seed, epoch); a batch may reach into the next epoch.
    """
    places = range(step * total_batch, (step + 1) * total_batch)
    return [int(_permutation(count, seed, place // count)[place % count]) for place in places]


def share(batch: Sequence[int], rank: int, world: int, micro_batch: int) -> list[list[int]]:
    """What one worker takes of a step's batch: one list of micro_batch positions for each accumulation round."""
    rounds = range(0, len(batch), world * micro_batch)
    return [list(batch[start + rank * micro_batch : start + (rank + 1) * micro_batch]) for start in rounds]


@functools.lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
