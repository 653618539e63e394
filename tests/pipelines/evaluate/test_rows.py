"""Rows on disk: written once, read once, whatever was written twice."""

from pathlib import Path
from typing import Any

from pipelines.evaluate import rows


def make(number: int, reason: str | None = None) -> dict[str, Any]:
    return {"id": f"id{number}", "name": f"n{number}", "variant": "real", "score": number / 10, "reason": reason}


def test_the_same_rows_are_the_same_files_in_any_order(tmp_path: Path) -> None:
    rows.write([make(1), make(2), make(3, "corrupt")], str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    rows.write([make(3, "corrupt"), make(2), make(1)], str(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    assert len(before) == 2
    assert rows.done(str(tmp_path)) == {"id1", "id2", "id3"}


def test_each_row_is_read_once_in_the_order_asked_for_and_a_measured_one_outdoes_its_reject(tmp_path: Path) -> None:
    rows.write([make(1), make(2)], str(tmp_path))
    rows.write([make(2), make(3)], str(tmp_path))  # a worker outlived its driver
    rows.write([make(3, "timeout"), make(4, "corrupt")], str(tmp_path))
    measured, rejects = rows.read(str(tmp_path), ["id3", "id2", "id4", "id9"])
    assert [row["id"] for row in measured] == ["id3", "id2"]
    assert [row["id"] for row in rejects] == ["id4"]
    assert measured[1]["score"] == 0.2
    assert rows.read(str(tmp_path / "nothing"), ["id1"]) == ([], [])


def test_an_id_changes_with_whatever_changes_the_row() -> None:
    case = {"uri": "a.mp4", "caption": "x"}
    base = rows.row_id(case, "", "model", "settings")
    others = [
        rows.row_id({**case, "caption": "y"}, "", "model", "settings"),
        rows.row_id(case, "init=fft", "model", "settings"),
        rows.row_id(case, "", "other", "settings"),
        rows.row_id(case, "", "model", "others"),
    ]
    assert len({base, *others}) == 5
    assert base == rows.row_id({**case, "name": "any"}, "", "model", "settings")
