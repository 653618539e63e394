"""What people see at the end: counts that are readable, buckets that are thin, pictures that open."""

import io
from pathlib import Path

from PIL import Image

from pipelines.dataset import parts
from pipelines.prepare import clips, job
from tests.pipelines.dataset.test_parts import clip


def test_the_table_names_every_reason_the_most_frequent_first() -> None:
    counts = {"clips": 12, "videos": 9, "rejects": {"corrupt": 1, "missing": 20}}
    lines = list(job.count_lines(counts))
    assert [line.split() for line in lines] == [
        ["12", "clips", "of", "9", "videos"],
        ["20", "rejected:", "missing"],
        ["1", "rejected:", "corrupt"],
    ]


def test_thin_buckets_are_named() -> None:
    assert job.thin_buckets([100, 1] + [50] * 18) == "warning: under 1% of the clips in motion buckets 1"
    assert job.thin_buckets([5] * 20) is None


def test_speeds_are_clips_by_seconds() -> None:
    sums = {"clips": 10, "rejects": 5, "decode_s": 2.0, "encode_s": 4.0, "score_s": 0.0}
    assert job.measure_speeds(sums, took=5.0) == {"job": 2.0, "decode": 5.0, "encode": 2.5}
    assert job.measure_speeds({}, took=5.0) == {}


def test_pictures_show_a_clip_of_each_bucket_and_leave_out_a_video_that_is_gone(
    tmp_path: Path, moving_video: Path
) -> None:
    rows = [clip(0, 2, str(moving_video)), clip(1, 5, str(moving_video)), clip(2, 9, str(tmp_path / "none.mp4"))]
    for row, size in zip(rows, ((32, 48), (48, 48), (32, 48)), strict=True):
        row.update(zip(("height", "width"), size, strict=True))
    parts.write(rows, str(tmp_path / "ds"))
    found = job.pictures(parts.survey(str(tmp_path / "ds")), clips.directly)
    sheet = Image.open(io.BytesIO(found["bucket_sheet.png"]))
    assert sheet.height == 6 + (22 + 128 + 6) + (22 + 192 + 6)
    assert Image.open(io.BytesIO(found["bucket_histogram.png"])).width > 400
