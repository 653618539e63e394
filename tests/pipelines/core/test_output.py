"""An output: settings that do not mix, parts named by their rows, a last file that goes while work is left."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.output import Output, Reason, reject, write_part

MADE_WITH = {"job": "animate", "seed": 0, "vae_fingerprint": "aa"}
ROWS = pa.table({"id": ["a", "b"]})


def test_an_output_is_finished_until_a_job_begins_to_work_on_it(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"), "dataset.json")
    output.claim(MADE_WITH)
    assert not output.is_finished
    (tmp_path / "out" / "dataset.json").write_text("{}")
    output.finish({"rows": 2})
    assert output.is_finished
    output.claim(MADE_WITH)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["settings.json"]


def test_an_output_takes_only_what_it_was_made_with(tmp_path: Path) -> None:
    output, flags = Output(str(tmp_path)), {"vae_fingerprint": "--model"}
    output.check(MADE_WITH)
    assert list(tmp_path.iterdir()) == []
    output.claim(MADE_WITH)
    output.check(MADE_WITH, flags)
    for change, sentence in (
        ({"seed": 1}, r"--seed: .* was made with seed 0, this job has 1; give the old value, or another --output"),
        ({"vae_fingerprint": "bb"}, r"--model: .* was made with vae_fingerprint 'aa', this job has 'bb'"),
        ({"job": "evaluate"}, r"--output .* was made by another job"),
        ({"new": 3}, r"--new: .* was made with new None, this job has 3"),
    ):
        with pytest.raises(ValueError, match=sentence):
            output.check(MADE_WITH | change, flags)


def test_the_same_rows_are_the_same_file_whoever_writes_them(tmp_path: Path) -> None:
    first = write_part(ROWS, str(tmp_path))
    stamp = Path(first).stat().st_mtime_ns
    assert write_part(ROWS, str(tmp_path)) == first
    assert Path(first).stat().st_mtime_ns == stamp
    assert write_part(ROWS.slice(1), str(tmp_path)) != first
    named = write_part(ROWS, str(tmp_path), named=b"a\nb", group=1)
    assert write_part(ROWS.slice(1), str(tmp_path), named=b"a\nb") == named
    assert pq.read_table(named).num_rows == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_reject_keeps_its_row_and_says_why() -> None:
    rejected = reject({"uri": "/a"}, "probe", Reason.TOO_SHORT, "3 frames")
    assert rejected == {"uri": "/a", "stage": "probe", "reason": "too_short", "message": "3 frames"}
