"""What is listed of a catalog: each row once, by its number today, whatever was listed before."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.animate import listing
from pipelines.animate.job import lines
from pipelines.animate.records import reject
from pipelines.core.output import Reason
from tests.pipelines.animate.listing_rows import plan_of, state


def write(output: Path, rows: Iterable[dict[str, Any]]) -> None:
    writer = listing.Writer(str(output), ".mp4")
    for row in rows:
        writer.add(row)
    writer.close()


def stored(output: Path, folder: str = "results") -> dict[int, dict[str, Any]]:
    if not (output / folder).exists():
        return {}
    rows = pq.read_table(output / folder).to_pylist()
    assert len({row["row"] for row in rows}) == len(rows)
    return {row["row"]: row for row in rows}


def test_what_was_listed_is_found_again_and_counted(tmp_path: Path) -> None:
    bad = reject({**state(2), "facts": None}, "image", Reason.MISSING, "it is gone")
    write(tmp_path, [state(0, score=0.99), state(1, score=0.5), bad])
    found = listing.survey(str(tmp_path))
    assert (found.listed, found.videos, found.reasons) == (2, 2, {"missing": 1})
    assert (found.buckets[0], found.buckets[10], sum(found.buckets)) == (1, 1, 2)
    assert found.lists(plan_of({"key0": 0, "key1": 1, "key2": 2}))
    assert not found.lists(plan_of({"key0": 0, "key1": 1}))
    assert stored(tmp_path)[1]["video"] == "videos/id1.mp4"
    assert stored(tmp_path)[1]["seconds"] == pytest.approx(1.5)
    assert stored(tmp_path, "rejects")[2]["message"] == "it is gone"


def test_rows_that_lack_more_than_a_third_of_their_image_are_counted(tmp_path: Path) -> None:
    write(tmp_path, [state(0, cut=0.4), state(1, cut=0.3), state(2, cut=None)])
    found = listing.survey(str(tmp_path))
    assert found.much_cut == 1
    assert any("1  rows with more than a third of the image cut away" in line for line in lines(found))
    assert stored(tmp_path)[0]["cut_away"] == pytest.approx(0.4)
    (part,) = (tmp_path / "results").iterdir()
    pq.write_table(pq.read_table(part).drop_columns("cut_away"), part)  # as outputs of before
    assert listing.survey(str(tmp_path)).much_cut == 0


def test_rows_that_left_the_catalog_are_not_listed_and_files_of_others_are_not_touched(tmp_path: Path) -> None:
    write(tmp_path, [state(0)])
    write(tmp_path, [state(1), state(2)])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    listing.settle(str(tmp_path), plan_of({"key0": 0, "key2": 2}))
    assert stored(tmp_path).keys() == {0, 2}
    assert len({path for path, time in times.items() if path.exists() and path.stat().st_mtime_ns == time}) == 1
    assert listing.survey(str(tmp_path)).lists(plan_of({"key0": 0, "key2": 2}))


def test_parts_of_earlier_versions_are_settled_with_what_they_lack_empty(tmp_path: Path) -> None:
    write(tmp_path, [state(0), state(1)])
    (part,) = (tmp_path / "results").iterdir()
    pq.write_table(pq.read_table(part).drop_columns("source_video"), part)
    listing.settle(str(tmp_path), plan_of({"key1": 0}))
    assert stored(tmp_path)[0]["source_video"] is None


def test_rows_get_the_numbers_that_they_have_today(tmp_path: Path) -> None:
    write(tmp_path, [state(0), state(1), state(2)])
    turned = plan_of({"key0": 2, "key1": 1, "key2": 0})
    listing.settle(str(tmp_path), turned)
    assert {number: row["key"] for number, row in stored(tmp_path).items()} == {0: "key2", 1: "key1", 2: "key0"}
    assert listing.survey(str(tmp_path)).lists(turned)


def test_a_row_that_was_listed_twice_is_listed_once_and_a_video_outdoes_a_reject(tmp_path: Path) -> None:
    write(tmp_path, [state(0), state(1), state(1)])
    write(tmp_path, [state(1), reject(state(0), "animate", Reason.FAILED, "once")])
    plan = plan_of({"key0": 0, "key1": 1})
    listing.settle(str(tmp_path), plan)
    assert stored(tmp_path).keys() == {0, 1}
    assert stored(tmp_path, "rejects") == {}
    assert listing.survey(str(tmp_path)).lists(plan)


@pytest.mark.parametrize("catalog", [{"key0": 0, "key1": 2}, {"key0": 7, "key1": 8}, {"key1": 0}])
def test_a_part_that_a_kill_left_beside_its_replacement_costs_no_row(tmp_path: Path, catalog: dict[str, int]) -> None:
    write(tmp_path, [state(0), state(1)])
    (part,) = (tmp_path / "results").iterdir()
    before = part.read_bytes()
    listing.settle(str(tmp_path), plan_of(catalog))
    part.write_bytes(before)
    listing.settle(str(tmp_path), plan_of(catalog))
    assert listing.survey(str(tmp_path)).lists(plan_of(catalog))


def test_twins_are_listed_with_the_video_of_the_first_or_rejected_for_its_reason(tmp_path: Path) -> None:
    twin = {**state(1, "same"), "twin": True}
    other = {**state(3, "bad"), "twin": True}
    write(tmp_path, [twin, other, state(0, "same"), reject(state(2, "bad"), "animate", Reason.FAILED, "why")])
    assert {number: row["video"] for number, row in stored(tmp_path).items()} == dict.fromkeys(
        (0, 1), "videos/same.mp4"
    )
    assert stored(tmp_path)[1]["image"] == "/photos/1.png"
    assert {number: row["reason"] for number, row in stored(tmp_path, "rejects").items()} == {2: "failed", 3: "failed"}
    assert listing.survey(str(tmp_path)).videos == 1


def test_parts_are_of_a_bounded_size_and_the_same_rows_are_the_same_files(tmp_path: Path) -> None:
    rows = [state(number) for number in range(listing.ROWS_PER_FILE + 1)]
    write(tmp_path, rows)
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert len(names) == 2
    write(tmp_path, rows)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == names


def test_videos_and_listing_on_s3(bucket: Any, moving_frames: Any) -> None:
    import numpy as np

    from pipelines.animate import files

    output = "s3://videos/out"
    files.keep(output, "id0", np.zeros((4, 3, 9, 12), np.float32))
    written = files.write({**state(0), "frames": moving_frames[:4].tobytes()}, output, ".mp4")
    writer = listing.Writer(output, ".mp4")
    for row in (written, state(1)):
        writer.add(row)
    writer.close()
    assert files.sidecar(output, "id0", ".mp4") is not None
    assert files.kept(output, "id0") is None
    assert listing.survey(output).lists(plan_of({"key0": 0, "key1": 1}))
    listing.settle(output, plan_of({"key0": 1}))
    assert listing.survey(output).lists(plan_of({"key0": 1}))
    names = {name.rpartition("/")[2] for name in bucket.ls("videos/out/videos", refresh=True)}
    assert names - {""} == {"id0.mp4", "id0.json", "id0.thumb.webp"}  # "" stands for the folder
