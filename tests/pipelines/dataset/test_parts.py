"""Parts and what they say: counts, what is finished, rows that are there twice."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core import hashing
from pipelines.dataset import parts, records


def clip(number: int, bucket: int = 3, video: str = "/a") -> dict[str, Any]:
    latents = np.full((2, 1, 2, 2), number, np.float16)
    start = {"uri": video, "caption": "", "start_frame": number, "interval": 3, "fps": 8.0, "score": 0.8}
    identity = records.clip_id(video, number, 3, 2, (16, 16), "v")
    tensors = {"latents": latents.tobytes(), "latents_shape": latents.shape}
    shape = {"num_frames": 2, "height": 16, "width": 16}
    return {**start, **shape, **tensors, "clip_id": identity, "bucket": bucket, "reason": None}


def reject(video: str, start: int | None, reason: str) -> dict[str, Any]:
    return {"uri": video, "start_frame": start, "stage": "probe", "reason": reason, "message": "so"}


def test_a_survey_counts_what_is_written(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert parts.survey(output).clips == 0
    rows = [clip(0), clip(1, bucket=7), reject("/a", 9, "corrupt"), reject("/b", None, "missing")]
    assert parts.write(rows[:1] + rows[2:3], output) == (1, 1)
    assert parts.write(rows[1:2] + rows[3:], output) == (1, 1)
    found = parts.survey(output)
    assert (found.clips, found.rejected_videos, dict(found.reasons)) == (2, 1, {"corrupt": 1, "missing": 1})
    assert (found.buckets[3], found.buckets[7], sum(found.buckets)) == (1, 1, 2)
    assert hashing.is_among(parts.keys(rows), found.keys).all()
    assert not hashing.is_among(parts.keys([clip(2), reject("/a", None, "missing")]), found.keys).any()
    assert found.examples[7]["start_frame"] == 1
    a, b = hashing.hash64(["/a", "/b"])
    assert set(found.videos) == {a, b}
    assert set(found.finished(3)) == {a, b}  # three rows of /a; /b can have none
    assert set(found.finished(4)) == {b}


def test_the_identity_of_rows_does_not_depend_on_files(tmp_path: Path) -> None:
    rows = [clip(number) for number in range(4)]
    for name, split in (("one", 1), ("two", 3)):
        for part in (rows[:split], rows[split:]):
            parts.write(part, str(tmp_path / name))
    parts.write(rows[:3], str(tmp_path / "less"))
    one, two, less = (parts.survey(str(tmp_path / name)).identity for name in ("one", "two", "less"))
    assert one == two != less


def test_rows_that_are_there_twice_are_kept_once(tmp_path: Path) -> None:
    output, rows = str(tmp_path), [clip(number) for number in range(4)]
    for part in (rows[:2], rows[1:], rows[1:2]):
        parts.write(part, output)
    assert parts.survey(output).clips == 6
    parts.drop_duplicates(output)
    found = parts.survey(output)
    assert found.clips == 4
    assert len(np.unique(found.keys)) == 4


def test_what_is_left_of_one_file_may_have_the_name_of_another(tmp_path: Path) -> None:
    """A driver died, its worker wrote two clips as a part, and the rerun had them in others; whatever their order."""
    for number in range(0, 36, 3):
        output, rows = str(tmp_path / str(number)), [clip(number + more) for more in range(3)]
        for part in (rows[1:], rows[:2], rows[2:]):
            parts.write(part, output)
        parts.drop_duplicates(output)
        found = parts.survey(output)
        assert (found.clips, found.has_duplicates) == (3, False)
        assert found.keys.tolist() == sorted(parts.keys(rows).tolist())


def test_a_row_that_is_twice_in_one_file_is_kept_once(tmp_path: Path) -> None:
    parts.write([clip(0), clip(1), clip(0)], str(tmp_path))
    parts.drop_duplicates(str(tmp_path))
    assert parts.survey(str(tmp_path)).keys.tolist() == sorted(parts.keys([clip(0), clip(1)]).tolist())


def test_a_clip_outdoes_its_reject(tmp_path: Path) -> None:
    """A worker that outlived its driver gave up a clip that the rerun then made."""
    output, other = str(tmp_path), reject("/a", 1, "corrupt")
    parts.write([clip(0), reject("/a", 0, "timeout"), other, reject("/a", None, "missing")], output)
    assert parts.survey(output).has_duplicates
    parts.drop_duplicates(output)
    found = parts.survey(output)
    assert (found.clips, dict(found.reasons), found.has_duplicates) == (1, {"corrupt": 1, "missing": 1}, False)


def test_segments_of_a_video_are_apart_and_parts_of_before_there_were_any_count(tmp_path: Path) -> None:
    output = str(tmp_path)
    rows = [clip(0), clip(0) | {"segment": "t=0,1"}, clip(0) | {"segment": "t=1,2"}, reject("/a", None, "corrupt")]
    rows[3]["segment"] = "t=2,3"
    parts.write(rows, output)
    found = parts.survey(output)
    assert (len(found.keys), len(found.videos), len(found.whole)) == (4, 4, 1)
    assert set(found.finished(1)) == set(hashing.hash64(["/a", "/a#t=0,1", "/a#t=1,2", "/a#t=2,3"]))
    (old,) = (tmp_path / "data").iterdir()
    pq.write_table(pq.read_table(old).drop_columns("segment").slice(0, 1), tmp_path / "data" / "old.parquet")
    assert parts.survey(output).clips == 4
    parts.drop_duplicates(output)
    assert parts.survey(output).keys.tolist() == found.keys.tolist()


def test_hashes_and_identity_are_those_of_outputs_that_exist(tmp_path: Path) -> None:
    rows = [clip(0), clip(7) | {"segment": ""}, clip(3) | {"segment": "t=0,1"}, reject("/b", None, "missing")]
    names = ["/a\n0", "/a\n7", "/a#t=0,1\n3", "/b\nNone"]
    assert parts.keys(rows).tolist() == hashing.hash64(names).tolist()
    parts.write(rows, str(tmp_path))
    wanted = sum(uuid.UUID(row["clip_id"]).int for row in rows[:3]) + int(hashing.hash64(names[3:])[0])
    assert parts.survey(str(tmp_path)).identity == wanted % (1 << 128)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**64 - 1)), max_size=200))
def test_each_name_keeps_its_first_owner_at_16_bytes_a_name(claims: list[tuple[int, int]]) -> None:
    owners, wanted = hashing.Owners(newest=4), dict[int, int]()
    for name, owner in claims:
        name = 2**64 - 1 - name
        assert owners.first(np.uint64(name), np.uint64(owner)) == wanted.setdefault(name, owner)
    assert len(wanted) - 4 < sum(run.nbytes for run in owners._runs) / 16 <= len(wanted)


@pytest.mark.parametrize("known", [[], [5], [1, 5, 2**64 - 1]])
def test_membership_of_hashes(known: list[int]) -> None:
    asked = [0, 1, 5, 6, 2**64 - 1]
    found = hashing.is_among(np.array(asked, np.uint64), np.array(known, np.uint64))
    assert found.tolist() == [value in known for value in asked]


def test_small_files_are_merged_and_a_kill_leaves_every_row(tmp_path: Path) -> None:
    """A rest that is too small stays, as do rows, ids and the columns that older files lack."""
    output, rows = str(tmp_path), [clip(number) for number in range(33)]
    for first in range(0, 33, 3):
        parts.write(rows[first : first + 3], output)
    old = min((tmp_path / "data").iterdir())
    pq.write_table(pq.read_table(old).drop_columns(["first_frame", "transfer"]), old)
    files = {str(path): path.stat().st_size for path in (tmp_path / "data").iterdir()}
    before = parts.survey(output)
    assert parts.to_merge(output) == []
    groups = parts.to_merge(output, 4 * max(files.values()) - 1)
    assert sum(map(len, groups)) < len(files)
    for group in groups:
        assert sum(files[uri] for uri in group[:-1]) < 4 * max(files.values()) - 1 <= sum(files[uri] for uri in group)
        merged = parts.merge(output, group)
        assert merged == group
        twice = parts.survey(output)
        Path(group[0]).unlink()  # the driver dies while it removes the others
        parts.drop_duplicates(output)
        after = parts.survey(output)
        assert twice.clips > after.clips == before.clips
        assert (after.identity, after.keys.tolist()) == (before.identity, before.keys.tolist())
    table = pq.read_table(tmp_path / "data")
    assert {row["clip_id"]: row["latents"] for row in table.to_pylist()} == {
        row["clip_id"]: np.frombuffer(row["latents"], np.float16).tolist() for row in rows
    }


def test_files_of_each_shape_are_merged_among_themselves(tmp_path: Path) -> None:
    output, rows = str(tmp_path), [{**clip(number), "width": 16 + 16 * (number % 2)} for number in range(24)]
    for first in range(0, 24, 4):
        parts.write(rows[first : first + 4], output, by_shape=True)
    data = tmp_path / "data"
    assert sorted(path.name for path in data.iterdir()) == ["2x16x16", "2x16x32"]
    before = parts.survey(output)
    assert before.shapes == {(2, 16, 16): 12, (2, 16, 32): 12}
    size = max(path.stat().st_size for path in data.rglob("*.parquet"))
    for group in parts.to_merge(output, 3 * size):
        assert len({Path(uri).parent for uri in group}) == 1
        parts.merge(output, group)
        Path(group[0]).unlink()
        parts.drop_duplicates(output)
    assert len(list(data.rglob("*.parquet"))) < 12
    assert pq.read_table(data / "2x16x32")["width"].to_pylist() == [32] * 12
    assert parts.survey(output).identity == before.identity
