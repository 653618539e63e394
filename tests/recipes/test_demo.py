"""`make demo` at its smallest: every step of it, and everything that it says it leaves."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cinemo import checkpoint
from cinemo.video import probe

ROOT = Path(__file__).parents[2]


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "recipes" / "demo.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.long
@pytest.mark.ray
def test_a_folder_of_clips_becomes_an_animated_photo(moving_video: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "clips").mkdir(parents=True)
    (tmp_path / "data" / "images").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "data" / "clips" / name).write_bytes(moving_video.read_bytes())
    Image.effect_noise((90, 60), 40).save(tmp_path / "data" / "images" / "photo.png")
    done = demo(tmp_path, "--clips", "data/clips", "--steps", "2", "--sampling-steps", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    assert probe(out / "animation.mp4").num_frames == 16
    assert checkpoint.read_card(out / "train" / "model").lineage["steps"] == 2
    for name in ("sheet.png", "train/loss.png"):
        Image.open(out / name).verify()
    for name in ("animation.mp4", "sheet.png", "loss.png", "dataset", "model", "mlflow.db"):
        assert name in done.stdout  # it says where each of these is
    assert done.stdout.count("\n  ") >= 9  # six places, three commands to try next


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = demo(tmp_path, "--clips", "nowhere")
    assert done.returncode == 2
    assert "nowhere is not a folder" in done.stderr
    assert not list(tmp_path.glob("out/*"))
