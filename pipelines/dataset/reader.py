"""A prepared dataset, as training reads it: its description, the videos held out, and clips by position and in order.

Single clips are read from Parquet when they are needed, and found through the index (index.py), so that a worker's
memory hardly grows with the dataset. Their order (order.py) does not depend on files, workers or speed.
"""

import functools
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import hashing, storage
from pipelines.core.patience import patient
from pipelines.dataset import index, records
from pipelines.dataset.order import DRAWN_UP_TO, EpochOrder
from pipelines.dataset.shape_order import ShapeSchedule

_COLUMNS = ("clip_id", "caption", "bucket", "first_frame")  # read of a clip besides its tensors
_TENSORS = ("latents", "text_embeds")
_CHUNK = 1 << 20  # rows of an index that are converted at a time


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

    can_be_read_ahead: bool  # by threads, in any order

    def begin(self, number: int, cursor: Sequence[int] | None) -> None:
        """Prepare to read from clip `number` on. One worker calls this before any worker reads a clip.

        cursor: what `cursor(number)` returned, as it comes out of a checkpoint; None at the first clip.
        """

    def cursor(self, number: int) -> Sequence[int] | None:
        """Return what `begin` needs, besides the number, to go to clip `number`: a value that JSON can hold."""

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Numbers of the clips of a step's whole batch, all of one shape, over all workers; steps count from 0."""

    def left_out(self, total_batch: int) -> int:
        """Count the clips that are in no batch, because their shape has fewer clips than a batch."""

    def shape_index(self, number: int) -> int:
        """Index of the shape of clip `number`, from 0: clips with the same index fit in one batch."""

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


def shapes_of(description: Mapping[str, Any]) -> list[records.Shape]:
    """Shapes of a dataset's clips (frames, height, width), the most frequent first. description: dataset.json."""
    return [records.shape_of(shape) for shape in description.get("shapes", [description])]


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
    return index.split_of(hashes) < _held_out_below(share)


def _held_out_below(share: float) -> np.uint32:
    return np.uint32(round(share * index.SPLIT))


def count_clips(uri: str, share: float, enough: int) -> int:
    """Count the clips to train on, of the most frequent shape, when a share of the videos is held out.

    Stops counting at `enough`. Clips of each shape are in a folder of their own.
    """
    counts: Counter[str] = Counter({"": 0})
    for name in storage.list_files(index.data_folder(uri), (".parquet",)):
        uris = index.readable(name, _read_uris, name)
        counts[storage.parent(name)] += int((~is_held_out(hashing.hash64(uris), share)).sum())
        if counts[storage.parent(name)] >= enough:
            break
    return max(counts.values())


@patient
def _read_uris(file: str) -> list[str]:
    files, path = storage.filesystem(file)
    return pq.read_table(path, filesystem=files, columns=["uri"])["uri"].to_pylist()


class HeldOutLast:
    """An order of the rows of an index: those to train on, then those held out. Only the latter take memory."""

    def __init__(self, held_out: np.ndarray) -> None:
        """held_out: bool, of each row."""
        self.held_out = np.flatnonzero(held_out)
        self.trained_on = len(held_out) - len(self.held_out)
        self._trained_on_before = self.held_out - np.arange(len(self.held_out))  # rows before each one held out

    def row(self, position: int) -> int:
        """The row at a position."""
        if position >= self.trained_on:
            return int(self.held_out[position - self.trained_on])
        return position + int(np.searchsorted(self._trained_on_before, position, side="right"))


class ClipReader:
    """Clips of a prepared dataset by position: 0..len-1 in the order of their ids, whatever files they are in.

    Clips of videos that are held out have the positions from len on. Implements Clips.
    """

    can_be_read_ahead = True

    def __init__(
        self, uri: str, share: float = 0.0, index_uri: str | None = None, drawn_up_to: int = DRAWN_UP_TO
    ) -> None:
        """uri: the dataset. share: part of its videos to hold out. index_uri: its index; None: one is made now.

        drawn_up_to: passed to EpochOrder.
        """
        self.folder = index.data_folder(uri)
        self.index = index.build(uri, index.files_of(uri)) if index_uri is None else index.load(index_uri)
        self.order = HeldOutLast(self.index.split < _held_out_below(share))
        self._shapes = _numbered(self.index.shape)
        self._epochs = EpochOrder(len(self), drawn_up_to)
        self._groups = None if self._shapes is None else self._split(self._shapes, drawn_up_to)
        # Holds the row groups of a few steps. More would not help: clips of one group are rarely read together.
        self._schedule = functools.lru_cache(maxsize=1)(self._schedule_of)
        self._group = functools.lru_cache(maxsize=32)(_read_group)

    def __len__(self) -> int:
        return self.order.trained_on

    def buckets(self) -> np.ndarray:
        """Motion bucket of each clip to train on, by position: uint8 (len,)."""
        return np.delete(self.index.bucket, self.order.held_out)

    def groups(self) -> list[np.ndarray]:
        """Positions of the clips to train on, for each shape: int32 (n,), rising."""
        return [group.positions for group in self._groups or []] or [np.arange(len(self), dtype=np.int32)]

    def _split(self, shapes: np.ndarray, drawn_up_to: int) -> list["_Group"]:
        trained_on = np.delete(shapes, self.order.held_out)
        found = (np.flatnonzero(trained_on == shape).astype(np.int32) for shape in range(shapes.max() + 1))
        return [_Group(positions, EpochOrder(len(positions), drawn_up_to)) for positions in found]

    def shape_index(self, number: int) -> int:
        """Index of the shape of clip `number`; 0 where all clips have one shape."""
        return 0 if self._shapes is None else int(self._shapes[self.order.row(number)])

    def left_out(self, total_batch: int) -> int:
        """Count the clips of shapes that have fewer clips than a batch, and so are in none."""
        sizes = [len(group) for group in self.groups()]
        return sum(size for size in sizes if size < total_batch) if len(sizes) > 1 else 0

    def held_out(self, most: int) -> list[int]:
        """Positions of the first clips that are held out, `most` at most."""
        return list(range(len(self), min(len(self) + most, len(self.index.split))))

    def begin(self, number: int, cursor: Sequence[int] | None) -> None:
        """Do nothing: any clip can be read at any time."""

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Positions of the clips of a step's whole batch, over all workers."""
        if self._groups is None:
            return self._epochs.batch(total_batch, seed, step)
        shape, earlier = self._schedule(total_batch).at(seed, step)
        positions, epochs = self._groups[shape]
        return positions[epochs.batch(total_batch, seed, earlier)].tolist()

    def _schedule_of(self, total_batch: int) -> ShapeSchedule:
        return ShapeSchedule(weights_of_shapes([len(group) for group in self.groups()], total_batch))

    def cursor(self, number: int) -> None:
        """Return None: a position is enough to read a clip."""

    def __getitem__(self, position: int) -> Clip:
        """Read a clip; threads may do so at once. Raises ValueError, naming the file, where it is not in its place."""
        row = self.order.row(position)
        number, group, place = self.index.place[row].tolist()
        clip_id = str(uuid.UUID(bytes=self.index.clip_id[row].tobytes()))
        file = storage.join(self.folder, self.index.file[number].decode())
        clip = index.readable(file, self._clip, file, group, place)
        if clip.clip_id != clip_id:
            raise ValueError(
                f"{file} has clip {clip.clip_id} where the index has {clip_id}: the file is newer than the index; "
                "give the same command again, which makes another index"
            )
        return clip

    def _clip(self, file: str, group: int, place: int) -> Clip:
        table = self._group(file, group)
        values = {name: table[name][place].as_py() for name in _COLUMNS if name in table.column_names}
        text = _tensor(table, "text_embeds", place) if "text_embeds" in table.column_names else None
        return Clip(**values, latents=_tensor(table, "latents", place), text_embeds=text)


class _Group(NamedTuple):
    positions: np.ndarray  # int32 (n,), of the clips of a shape
    epochs: EpochOrder  # order of the indices of `positions`


def _numbered(shapes: np.ndarray | None) -> np.ndarray | None:
    """Number the different shapes: int32 (n, 3) -> uint16 (n,); None where all clips have one shape."""
    if shapes is None or not len(shapes):
        return None

    def codes(first: int) -> np.ndarray:
        frames, height, width = shapes[first : first + _CHUNK].T.astype(np.int64)
        return (frames << 32) + (height << 16) + width

    starts = range(0, len(shapes), _CHUNK)  # in parts, because temporary arrays of all take several times the memory
    known = np.unique(np.concatenate([np.unique(codes(first)) for first in starts]))
    if len(known) == 1:
        return None
    return np.concatenate([np.searchsorted(known, codes(first)).astype(np.uint16) for first in starts])


def weights_of_shapes(weights: Sequence[float], total_batch: int, counts: Sequence[int] | None = None) -> list[float]:
    """Weights of shapes, with 0 for those that have fewer clips than a batch. Raises ValueError if all have.

    counts: clips of each shape; default: the weights.
    """
    clips = weights if counts is None else counts
    kept = [weight * (count >= total_batch) for weight, count in zip(weights, clips, strict=True)]
    if not sum(kept) > 0:
        raise ValueError(
            f"--total-batch {total_batch}: a batch has clips of one shape, and no shape has so many to train on "
            f"(they have {', '.join(f'{count:g}' for count in clips)}); lower it"
        )
    return kept


@patient
def _read_group(file: str, group: int) -> pa.Table:
    files, path = storage.filesystem(file)
    with pq.ParquetFile(path, filesystem=files, pre_buffer=True) as opened:  # one request for all columns
        wanted = [name for name in (*_COLUMNS, *_TENSORS) if name in opened.schema_arrow.names]
        return opened.read_row_group(group, columns=wanted)


def _tensor(table: pa.Table, name: str, row: int) -> np.ndarray:
    column = table[name].slice(row, 1).combine_chunks()
    return column.to_numpy_ndarray()[0].astype(np.float32)


def micro_batches(batch: Sequence[int], rank: int, world_size: int, size: int) -> list[list[int]]:
    """Positions that one worker takes of a step's batch: a list of `size` for each gradient accumulation step.

    Where the batch does not divide, the last lists are shorter, or empty.
    """
    starts = range(0, len(batch), world_size * size)
    return [list(batch[start + rank * size : start + (rank + 1) * size]) for start in starts]
