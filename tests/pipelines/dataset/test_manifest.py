"""The stored list of videos: every video in one slice, the same again changes nothing."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.core import hashing
from pipelines.dataset import manifest
from pipelines.sources import VIDEO


def tables(*sizes: int) -> list[pa.Table]:
    rows = [[{"uri": f"/{part}-{k}", "caption": "", "fault": None} for k in range(n)] for part, n in enumerate(sizes)]
    return [pa.Table.from_pylist(part, schema=VIDEO) for part in rows]


@pytest.mark.parametrize("sizes", [(1,), (3, 5), (1500, 2100, 7)])
def test_slices_hold_every_video_once_in_order(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    videos = tables(*sizes)
    files, hashes = manifest.write(videos, str(tmp_path))
    uris = [uri for table in videos for uri in table["uri"].to_pylist()]
    for slices in (manifest.slices(files), manifest.slices(files, smallest=1, wanted=40)):
        read = [video["uri"] for part in slices.to_pylist() for video in manifest.read_slice(**part)]
        assert read == uris
    assert hashes.tolist() == sorted(hashing.hash64(uris).tolist())
    assert manifest.slices(files, smallest=1, wanted=40).num_rows >= min(40, len(uris))


def test_the_same_list_again_changes_no_file_and_another_replaces_it(tmp_path: Path) -> None:
    manifest.write(tables(5), str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    manifest.write(tables(5), str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    files, _ = manifest.write(tables(6), str(tmp_path))
    assert {str(path) for path in tmp_path.iterdir()} == set(files)
    assert not before.keys() & set(tmp_path.iterdir())
