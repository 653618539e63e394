"""Writing video files: every format, odd sizes, and nothing half-written."""

from pathlib import Path

import numpy as np
import pytest

from cinemo.video import probe
from cinemo.videowrite import write_video


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
@pytest.mark.parametrize("shape", [(5, 32, 48, 3), (2, 33, 47, 3)])
def test_every_format_and_odd_sizes_are_written(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    from PIL import Image

    path = tmp_path / "new" / f"clip{suffix}"
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_video(path, frames, fps=8)
    if suffix == ".mp4":
        assert probe(path) == (shape[0], 8.0, shape[2] + shape[2] % 2, shape[1] + shape[1] % 2)
    else:
        assert getattr(Image.open(path), "n_frames", 1) == shape[0]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left


@pytest.mark.parametrize(
    ("name", "fps", "words"), [("a.txt", 8, "ends in .txt"), ("a", 8, "ends in nothing"), ("a.mp4", 0, "fps 0")]
)
def test_bad_output_is_named_before_anything_is_written(tmp_path: Path, name: str, fps: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write_video(tmp_path / name, np.zeros((2, 16, 16, 3), np.uint8), fps)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="frames are"):
        write_video(path, np.zeros((2, 16, 16, 3), np.float32))
    assert path.read_bytes() == b"old"
