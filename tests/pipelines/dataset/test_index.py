"""The index of a dataset: the same clips without opening their files, whole or not at all, never of other files."""

import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core import storage
from pipelines.dataset import index, reader
from pipelines.dataset.balance import BalancedClips
from pipelines.dataset.shape_order import BLOCK
from tests.pipelines.conftest import rows
from tests.pipelines.train.validation_reference import share_of


@pytest.fixture
def dataset(prepared: str, tmp_path: Path) -> str:
    """A copy of the dataset of the session."""
    shutil.copytree(prepared, tmp_path / "dataset")
    return str(tmp_path / "dataset")


def find(dataset: str, lines: list[str] | None = None) -> str:
    """URI of the dataset's index, or of one beside it."""
    said: Callable[[str], object] = [].append if lines is None else lines.append
    return index.find(dataset, reader.read_description(dataset), str(Path(dataset).parent / "run" / "index"), said)


def test_training_finds_every_clip_through_the_index_and_opens_no_other_file(dataset: str, tmp_path: Path) -> None:
    uri = find(dataset)
    stored = sorted(rows(dataset), key=lambda row: row["clip_id"])
    share = share_of({row["uri"] for row in stored}, 2)
    clips = reader.ClipReader(dataset, share, uri)
    held = reader.is_held_out(reader.hashing.hash64(row["uri"] for row in stored), share)
    ordered = [row for row, out in zip(stored, held, strict=True) if not out]
    ordered += [row for row, out in zip(stored, held, strict=True) if out]
    assert 0 < len(clips) < len(stored)
    (tmp_path / "dataset" / "data").rename(tmp_path / "away")
    fresh = reader.ClipReader(dataset, share, uri)
    assert (len(fresh), fresh.held_out(99)) == (len(clips), clips.held_out(99))
    (tmp_path / "away").rename(tmp_path / "dataset" / "data")
    for position, row in enumerate(ordered):
        clip = clips[position]
        assert (clip.clip_id, clip.caption, clip.bucket) == (row["clip_id"], row["caption"], row["bucket"])
        np.testing.assert_array_equal(clip.latents.ravel(), np.array(row["latents"], np.float32))
    assert clips.buckets().tolist() == [row["bucket"] for row in ordered[: len(clips)]]


@given(st.lists(st.booleans(), max_size=40))
def test_positions_are_rows_to_train_on_in_order_then_rows_held_out(held_out: list[bool]) -> None:
    order = reader.HeldOutLast(np.array(held_out))
    expected = sorted(range(len(held_out)), key=lambda row: (held_out[row], row))
    assert [order.row(position) for position in range(len(held_out))] == expected


def test_a_dataset_gets_its_index_once_and_its_own_comes_first(dataset: str) -> None:
    lines: list[str] = []
    made = find(dataset, lines)
    assert "run/index" in made
    assert len(lines) == 1
    assert f"{dataset} has no index" in lines[0]
    assert find(dataset, lines) == made
    assert len(lines) == 1
    index.update(dataset, reader.read_description(dataset))
    before = {path: path.stat().st_mtime_ns for path in Path(dataset, "index").rglob("*")}
    index.update(dataset, reader.read_description(dataset))
    assert {path: path.stat().st_mtime_ns for path in Path(dataset, "index").rglob("*")} == before
    assert find(dataset, lines).startswith(f"{dataset}/index/")
    assert len(lines) == 1


def test_an_index_that_is_older_than_a_file_is_made_again_and_a_missing_part_is_named(dataset: str) -> None:
    index.update(dataset, reader.read_description(dataset))
    old, lines = find(dataset), list[str]()
    first = max(Path(dataset, "data").iterdir(), key=lambda path: reader.pq.read_metadata(path).num_rows)
    other = next(path for path in Path(dataset, "data").iterdir() if path != first)
    table = reader.pq.read_table(first)
    assert table.num_rows > 1, "one clip would be where it was"
    reader.pq.write_table(table, first, row_group_size=1)
    new = find(dataset, lines)
    assert new != old
    assert f"older than its files ({first.name} has" in lines[0]
    stale = reader.ClipReader(dataset, 0.0, old)
    with pytest.raises(ValueError, match=rf"{first} (is damaged|has clip .* the file is newer than the index)"):
        list(map(stale.__getitem__, range(len(stale))))
    other.unlink()
    sentence = rf"older than its files \({other.name} is missing\).* have \d+ clips, 0 of them twice, where its"
    with pytest.raises(ValueError, match=sentence):
        find(dataset)


def test_an_index_that_a_training_reads_outlives_the_next_one(dataset: str) -> None:
    """A worker that is started anew maps its arrays again."""
    places = []
    for rows_in_a_group in (None, 1, 2):
        for path in Path(dataset, "data").iterdir():
            if rows_in_a_group is not None:
                reader.pq.write_table(reader.pq.read_table(path), path, row_group_size=rows_in_a_group)
        index.update(dataset, reader.read_description(dataset))
        places.append(find(dataset))
    assert len(set(places)) == 3
    for kept in places[1:]:
        index.load(kept)
    assert {path.parent for path in Path(dataset, "index").rglob("*.npy")} == set(map(Path, places[1:]))


def test_a_truncated_file_is_named_with_the_remedy(dataset: str) -> None:
    clips = reader.ClipReader(dataset, 0.0, find(dataset))
    for path in Path(dataset, "data").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sentence = r"data/part-\w+.parquet is damaged or missing \(.+\); restore it, or delete it and the dataset's"
    with pytest.raises(ValueError, match=sentence):
        _ = clips[0]
    with pytest.raises(ValueError, match=sentence):
        find(dataset)


def test_an_index_whose_writer_was_killed_is_not_used(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    description, put, done = reader.read_description(dataset), storage.put, list[str]()
    for writes in range(len(index.Index._fields)):  # a dataset of one shape has no array of shapes

        def dies(uri: str, data: Any, writes: int = writes) -> None:
            if len(done) == writes:
                raise KeyboardInterrupt
            done.append(uri)
            put(uri, data)

        with monkeypatch.context() as patched:
            patched.setattr(storage, "put", dies)
            with pytest.raises(KeyboardInterrupt):
                index.update(dataset, description)
        assert len(done) == writes
        done.clear()
        assert storage.read_json(f"{dataset}/index/index.json") is None
    index.update(dataset, description)
    assert len(index.load(find(dataset)).clip_id) == description["counts"]["clips"]


def test_a_damaged_index_is_refused_with_one_sentence(dataset: str) -> None:
    folder = Path(find(dataset))
    (folder / "place.npy").write_bytes((folder / "place.npy").read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"the index {folder} cannot be read .*; delete this folder"):
        index.load(str(folder))


def test_the_index_in_a_bucket_is_copied_once_to_a_node(
    bucket: Any, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CINEMO_CACHE", str(tmp_path / "cache"))
    index.update(dataset, reader.read_description(dataset))
    bucket.put(dataset, "videos/dataset", recursive=True)
    uri = "s3://videos/dataset"
    place = index.find(uri, reader.read_description(uri), "unused", lambda line: pytest.fail(line))
    clips, local = reader.ClipReader(uri, 0.0, place), reader.ClipReader(dataset)
    assert [clips[position].clip_id for position in range(len(clips))] == [
        str(uuid.UUID(bytes=local.index.clip_id[row].tobytes())) for row in range(len(local))
    ]
    bucket.rm("videos/dataset/index", recursive=True)
    assert len(reader.ClipReader(uri, 0.0, place)) == len(local)


def test_an_index_knows_the_shapes_and_every_batch_has_one(several_shapes: str, tmp_path: Path) -> None:
    dataset = str(shutil.copytree(several_shapes, tmp_path / "dataset"))
    stored = {row["clip_id"]: (row["num_frames"], row["height"], row["width"]) for row in rows(dataset)}
    assert set(stored.values()) == {(4, 64, 96), (4, 96, 64), (3, 64, 96)}
    clips = reader.ClipReader(dataset, 0.2, find(dataset))
    assert sorted(np.concatenate(clips.groups()).tolist()) == list(range(len(clips)))
    shape_of = [stored[clips[number].clip_id] for number in range(len(clips))]
    numbers = [clips.shape_index(number) for number in range(len(clips))]
    assert len(set(zip(shape_of, numbers, strict=True))) == len(set(numbers)) == 3
    for number in clips.held_out(3):
        assert clips.shape_index(number) == numbers[shape_of.index(stored[clips[number].clip_id])]
    sizes = list(map(len, clips.groups()))
    smallest = min(sizes)
    assert (clips.left_out(smallest), clips.left_out(smallest + 1)) == (0, smallest * sizes.count(smallest))
    weights = [1.0 * (bucket in clips.buckets()) for bucket in range(20)]
    for source in (clips, BalancedClips(clips, weights)):
        batches = [source.positions(2, 7, step) for step in range(2 * BLOCK)]
        shapes = [{numbers[position] for position in batch} for batch in batches]
        assert all(len(shape) == 1 for shape in shapes)
        drawn = Counter(shape.pop() for shape in shapes)
        for shape, count in Counter(numbers).items():
            assert drawn[shape] == pytest.approx(2 * BLOCK * count / len(clips), abs=2)
    whole = [len(group) for group in clips.groups()]
    first = [batch for batch in (clips.positions(1, 7, step) for step in range(999)) if numbers[batch[0]] == 0]
    assert len({position for [position] in first[: whole[0]]}) == whole[0]  # an epoch of a shape has each of its clips
    with pytest.raises(ValueError, match=r"--total-batch 99: a batch has clips of one shape, and no shape has so many"):
        clips.positions(99, 0, 0)
