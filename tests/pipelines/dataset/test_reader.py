"""Reading a dataset for training: any clip by position, and an order that depends on the seed alone."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core import hashing
from pipelines.dataset import parts, reader, records
from tests.pipelines.conftest import rows


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_workers_share_a_batch_without_loss_or_overlap(world: int, micro: int, rounds: int) -> None:
    batch = list(range(100, 100 + world * micro * rounds))
    shares = [reader.micro_batches(batch, rank, world, micro) for rank in range(world)]
    assert all(len(share) == rounds and all(len(part) == micro for part in share) for share in shares)
    assert sorted(position for share in shares for part in share for position in part) == batch


def test_reader_gives_each_row_of_the_files_in_the_order_of_ids(prepared: str) -> None:
    clips = reader.ClipReader(prepared)
    stored = sorted(rows(prepared), key=lambda row: row["clip_id"])
    assert len(clips) == len(stored) == reader.read_description(prepared)["counts"]["clips"]
    for position in reversed(range(len(clips))):
        clip, row = clips[position], stored[position]
        assert (clip.clip_id, clip.caption, clip.bucket) == (row["clip_id"], row["caption"], row["bucket"])
        assert (clip.latents.shape[0], *clip.latents.shape[2:]) == (4, 2, 2)
        assert clip.first_frame == row["first_frame"]
        np.testing.assert_array_equal(clip.latents.ravel(), np.array(row["latents"], np.float32))


def test_a_part_written_before_there_were_first_frames_and_traits_is_read_and_its_clips_are_done(
    prepared: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "dataset")
    shutil.copytree(prepared, output)
    old = min((tmp_path / "dataset" / "data").iterdir())
    table = pq.read_table(old).drop_columns(["first_frame", *(name for name, _ in records.TRAITS)])
    for path in (old, old.with_name("part-twice.parquet")):  # as a worker leaves it that outlived its driver
        pq.write_table(table, path)
    parts.drop_duplicates(output)
    whole, found = parts.survey(prepared), parts.survey(output)
    assert (found.identity, found.keys.tolist()) == (whole.identity, whole.keys.tolist())
    clips, expected = reader.ClipReader(output), reader.ClipReader(prepared)
    without = set(table["clip_id"].to_pylist())
    assert len(clips) == len(expected) > len(without) > 0
    for position in range(len(clips)):
        clip, same = clips[position], expected[position]
        assert clip.clip_id == same.clip_id
        assert clip.first_frame == (None if clip.clip_id in without else same.first_frame)
        np.testing.assert_array_equal(clip.latents, same.latents)


@given(st.integers(0, 2**64 - 1), st.floats(0, 0.999), st.floats(0, 0.999))
def test_a_larger_share_holds_out_the_videos_of_a_smaller_one_and_more(video: int, one: float, other: float) -> None:
    held = {share: reader.is_held_out(np.array([video], np.uint64), share)[0] for share in (0.0, one, other)}
    assert not held[0.0]
    assert held[min(one, other)] <= held[max(one, other)]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_the_share_that_is_held_out_is_the_one_that_was_asked_for(share: float) -> None:
    hashes = hashing.hash64(f"s3://bucket/{number}.mp4" for number in range(100_000))
    found = reader.is_held_out(hashes, share).mean()
    assert found == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(hashes)))


def test_held_out_clips_are_whole_videos_that_come_after_those_to_train_on(prepared: str) -> None:
    stored = sorted(rows(prepared), key=lambda row: row["clip_id"])
    for share in np.linspace(0, 0.9, 7):
        clips = reader.ClipReader(prepared, share)
        kept: list[str] = []
        others: list[str] = []
        for row in stored:
            (held_out,) = reader.is_held_out(hashing.hash64([row["uri"]]), share)
            (others if held_out else kept).append(row["clip_id"])
        assert [clips[position].clip_id for position in range(len(clips))] == kept
        assert [clips[position].clip_id for position in clips.held_out(99)] == others
        assert clips.held_out(1) == clips.held_out(99)[:1]
        for enough in (1, len(kept), 99):
            count = reader.count_clips(prepared, share, enough)
            assert (count >= enough) == (len(kept) >= enough)
        assert count == len(kept)
        epoch = clips.positions(len(clips), 0, 0) if kept else []
        assert sorted(clips[position].clip_id for position in epoch) == kept


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no dataset.json"):
        reader.read_description(str(tmp_path))
