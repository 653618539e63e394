"""The prepare job before and after its dataflow: duplicate rows are dropped, and the report is right.

Counts that are readable, buckets that are thin, pictures that open.
"""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.core import hashing, lease
from pipelines.core.output import Output
from pipelines.dataset import manifest, parts
from pipelines.prepare import clips, job
from pipelines.prepare.config import PrepareConfig
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


def test_a_clip_that_is_there_twice_does_not_stand_for_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver was killed before it dropped the rows that its rerun had written, too."""
    out = Output(str(tmp_path / "ds"), "dataset.json")
    files, wanted = manifest.write([pa.table({"uri": ["/a"], "caption": [""]})], out.place("videos"))
    config = PrepareConfig(input="/videos", output=out.uri, clips_per_video=3)
    rows = [clip(0), clip(1), clip(2)]
    for part in (rows[:1], rows[:2]):
        parts.write(part, out.uri)
    found: list[parts.Survey] = []

    def work(job: job.Job, slices: Any, written: parts.Survey, videos: int) -> Counter[str]:
        found.append(written)
        if not hashing.is_among(wanted, written.finished(config.clips_per_video)).any():
            parts.write(rows[2:], out.uri)
        return Counter({"clips": 1})

    monkeypatch.setattr(job, "work", work)
    with lease.hold(out.uri) as held:
        made, _ = job.finish_clips(job.Job(config, [(2, 16, 16)], {}), out, held, files, wanted)
    assert found[0].clips == 2
    assert made.keys.tolist() == sorted(parts.keys(rows).tolist())
