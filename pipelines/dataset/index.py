"""The index of a dataset: in which file and row each clip is, in the order of ids, as a few arrays on disk.

Training maps the arrays into memory, so that opening millions of clips opens no Parquet file, and the workers of a node
share the pages. An index lies in a folder named by the files that it was made of, and index.json, which names that
folder, is written last: an index is there as a whole or not at all, and one of other files is never used.
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cinemo.errors import first_line
from pipelines.core import cache, hashing, storage
from pipelines.core.patience import is_fault, patient
from pipelines.core.progress import Progress
from pipelines.dataset import records

SPLIT = 1_000_000  # a video's part is the hash of its uri modulo this; the lowest parts are held out
POINTER = "index.json"
# Versions of the arrays: 2 has `shape`, and 1, of datasets of one shape, has not. Others are made again.
_VERSION, _WITH_SHAPES = 1, 2
_READERS = 32  # files read at once: reading mostly waits for storage
_CHUNK = 4096  # files whose rows are requested at a time

_SHAPE = [name for name, _ in records.SHAPE]

T = TypeVar("T")


class Index(NamedTuple):
    """Arrays over the n clips of a dataset, in the order of their ids, and over its m files, in that of their names."""

    clip_id: np.ndarray  # uint8 (n, 16): the UUID
    place: np.ndarray  # int32 (n, 3): number of the file, row group in it, row in that
    bucket: np.ndarray  # uint8 (n,): motion bucket
    split: np.ndarray  # uint32 (n,): hash of the video's uri modulo SPLIT, which says whether the video is held out
    file: np.ndarray  # bytes (m,): name below OUT/data, in UTF-8
    size: np.ndarray  # int64 (m,): bytes of the file
    shape: np.ndarray | None = None  # int32 (n, 3): frames, height and width; None: all clips have one shape


def split_of(hashes: np.ndarray) -> np.ndarray:
    """The part, of SPLIT, that each video belongs to. hashes: of their uris, uint64 (hashing.hash64)."""
    return (hashes % np.uint64(SPLIT)).astype(np.uint32)


def files_of(dataset: str) -> dict[str, int]:
    """List the Parquet files of a dataset: name below OUT/data -> bytes, sorted by name."""
    folder = data_folder(dataset)
    return {uri[len(folder) + 1 :]: size for uri, size in storage.file_sizes(folder, (".parquet",)).items()}


def data_folder(dataset: str) -> str:
    """The folder of a dataset's files of clips."""
    return storage.join(storage.absolute(dataset), "data")


def find(dataset: str, description: Mapping[str, Any], spare: str, say: Callable[[str], object]) -> str:
    """URI of the index of a dataset: the dataset's own, or one that is made now, in the folder `spare`.

    description: dataset.json. say: takes a line for the person who watches the job, when one is made. Raises ValueError
    when a file is damaged, or the files do not have the clips that the description counts.
    """
    files = files_of(dataset)
    name = _name(files, description)
    places = [storage.join(storage.absolute(dataset), "index"), spare]
    pointers = [storage.read_json(storage.join(place, POINTER)) for place in places]
    for place, pointer in zip(places, pointers, strict=True):
        if pointer is not None and pointer["folder"] == name:
            return storage.join(place, name)
    older = f"{dataset} has no index"
    for place, pointer in zip(places, pointers, strict=True):
        if pointer is not None:
            changed = _first_change(storage.join(place, pointer["folder"]), files)
            older = f"the index of {dataset} is older than its files ({changed})"
            break
    say(f"{older}: making one in {spare}, which reads six columns of each of {len(files)} files")
    return write(build(dataset, files), spare, description, f"{older}; ")


def update(dataset: str, description: Mapping[str, Any]) -> None:
    """Write the index of a dataset into it, unless it has that of its files. description: dataset.json."""
    files, place = files_of(dataset), storage.join(storage.absolute(dataset), "index")
    pointer = storage.read_json(storage.join(place, POINTER))
    if pointer is None or pointer["folder"] != _name(files, description):
        write(build(dataset, files), place, description)


def write(index: Index, place: str, description: Mapping[str, Any], note: str = "") -> str:
    """Write an index below the folder `place`, in place of an older one; returns its URI.

    The arrays of the index that it replaces stay, for training workers that map them; older ones are deleted. Raises
    ValueError when it has not as many clips as the description (dataset.json) counts. note: begins that message.
    """
    clips, counted, words = len(index.clip_id), description["counts"]["clips"], _words(index.clip_id)
    twice = int((words[1:] == words[:-1]).all(axis=1).sum())
    if clips != counted or twice:
        raise ValueError(
            f"{note}the {len(index.file)} files of the dataset have {clips} clips, {twice} of them twice, where its "
            f"dataset.json counts {counted}; restore the files, or delete dataset.json and run ray_jobs/prepare.py "
            "again with this output, which makes what is missing"
        )
    sizes = dict(zip(_names(index), index.size.tolist(), strict=True))
    name = _name(sizes, description)
    for field, array in zip(Index._fields, index, strict=True):
        if array is None or (field == "shape" and "shapes" not in description):
            continue
        buffer = io.BytesIO()
        np.save(buffer, array)
        storage.put(storage.join(place, name, f"{field}.npy"), buffer.getbuffer())
    found = {"folder": name, "clips": clips, "files": len(index.file), "dataset": description["fingerprint"]}
    before = storage.read_json(storage.join(place, POINTER)) or found
    storage.put_json(storage.join(place, POINTER), found)
    for uri in storage.list_files(place, (".npy",)):
        if f"/{name}/" not in uri and f"/{before['folder']}/" not in uri:
            storage.remove(uri)
    return storage.join(place, name)


def load(uri: str) -> Index:
    """Map the arrays of an index into memory. A remote index is copied once to each node. Raises ValueError."""
    folder = Path(uri)
    if not storage.is_local(uri):
        name = f"{storage.base_name(uri)}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
        folder = cache.once_per_node("indexes", name, lambda aside: storage.download(uri, aside / "copy"))
    try:
        fields = [field for field in Index._fields if field != "shape" or (folder / "shape.npy").exists()]
        return Index(**{field: np.load(folder / f"{field}.npy", mmap_mode="r") for field in fields})
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"the index {folder} cannot be read ({first_line(error)}); delete this folder and {POINTER} beside it, and "
            "give the same command again, which makes it again"
        ) from error


def build(dataset: str, files: Mapping[str, int]) -> Index:
    """Make the index of a dataset from six columns of each of its files. Raises ValueError."""
    folder, names = data_folder(dataset), list(files)
    parts, progress = [], Progress("index", "files", len(names), every_s=10.0)
    with ThreadPoolExecutor(_READERS) as pool:
        for first in range(0, len(names), _CHUNK):
            uris = [storage.join(folder, name) for name in names[first : first + _CHUNK]]
            for number, rows in enumerate(pool.map(_read_rows, uris), first):
                rows["place"][:, 0] = number
                parts.append(rows)
                if len(names) > _CHUNK:
                    progress.add(1)
    columns = {field: np.concatenate([part[field] for part in [_no_rows(), *parts]]) for field in _no_rows()}
    high, low = _words(columns["clip_id"]).T
    order = np.lexsort((low, high))
    in_order = {field: column[order] for field, column in columns.items()}
    encoded = np.array([name.encode() for name in names], bytes)
    return Index(**in_order, file=encoded, size=np.array(list(files.values()), np.int64))


def _no_rows() -> dict[str, np.ndarray]:
    shapes = {"clip_id": (0, 16), "place": (0, 3), "bucket": (0,), "split": (0,), "shape": (0, 3)}
    kinds: dict[str, Any] = {
        "clip_id": np.uint8, "place": np.int32, "bucket": np.uint8, "split": np.uint32, "shape": np.int32
    }  # fmt: skip
    return {field: np.empty(shape, kinds[field]) for field, shape in shapes.items()}


def _read_rows(uri: str) -> dict[str, np.ndarray]:
    """The rows of one file as columns of an Index; the number of the file in `place` is left at 0."""
    sizes, table = readable(uri, _read_columns, uri)
    digits = "".join(table["clip_id"].to_pylist()).replace("-", "")
    place = np.zeros((table.num_rows, 3), np.int32)
    place[:, 1] = np.repeat(np.arange(len(sizes)), sizes)
    place[:, 2] = np.concatenate([np.empty(0, np.int32), *(np.arange(size) for size in sizes)])
    return {
        "clip_id": np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 16),
        "place": place,
        "bucket": table["bucket"].to_numpy(),
        "split": split_of(hashing.hash64(table["uri"].to_pylist())),
        "shape": np.stack([table[name].to_numpy() for name in _SHAPE], axis=1),
    }


@patient
def _read_columns(uri: str) -> tuple[list[int], pa.Table]:
    files, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=files, pre_buffer=True) as file:
        groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        return groups, file.read(columns=["clip_id", "uri", "bucket", *_SHAPE])


def readable(uri: str, read: Callable[..., T], *arguments: Any) -> T:
    """Call a function that reads a Parquet file of a dataset. Raises ValueError, with the remedy, for a bad file."""
    try:
        return read(*arguments)
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        if is_fault(error) or getattr(error, "waited", False):
            raise
        raise ValueError(
            f"{uri} is damaged or missing ({first_line(error)}); restore it, or delete it and the dataset's "
            "dataset.json and run ray_jobs/prepare.py again with this output, which makes its clips again"
        ) from error


def _words(clip_id: np.ndarray) -> np.ndarray:
    """Ids as pairs of numbers whose order is that of the ids: uint8 (n, 16) -> uint64 (n, 2)."""
    return np.ascontiguousarray(clip_id).view(">u8").reshape(-1, 2).astype(np.uint64)


def _names(index: Index) -> Iterator[str]:
    return (name.decode() for name in index.file.tolist())


def _name(files: Mapping[str, int], description: Mapping[str, Any]) -> str:
    version = _WITH_SHAPES if "shapes" in description else _VERSION
    lines: Iterable[str] = (f"{name}\t{size}\n" for name, size in files.items())
    return hashlib.sha256("".join([f"{version}\n{description['fingerprint']}\n", *lines]).encode()).hexdigest()[:32]


def _first_change(uri: str, files: Mapping[str, int]) -> str:
    """A file in which a dataset differs from an index, preferably a missing one, for messages."""
    try:
        old = load(uri)
    except (ValueError, OSError):
        return "and cannot be read"
    before = dict(zip(_names(old), old.size.tolist(), strict=True))
    if missing := sorted(before.keys() - files.keys()):
        return f"{missing[0]} is missing"
    for name in files:
        if name not in before:
            return f"{name} is new"
        if before[name] != files[name]:
            return f"{name} has {files[name]} bytes, and had {before[name]}"
    return "dataset.json is another"
