"""The files of a video: the sidecar makes it finished, and until then what was sampled is kept."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinemo.motion import motion_score
from pipelines.animate import files, videos

REQUEST = {"num_frames": 6, "height": 72, "width": 96, "fps": 8.0}


def row(frames: np.ndarray, **request: Any) -> dict[str, Any]:
    facts = {"request": {**REQUEST, **request}, "timings": {}}
    return {"id": "a", "key": "k", "reason": None, "frames": frames.tobytes(), "facts": json.dumps(facts)}


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".webp"])
def test_a_video_has_its_thumbnail_and_a_sidecar_with_what_was_measured(
    tmp_path: Path, moving_frames: np.ndarray, ending: str
) -> None:
    frames, output = moving_frames[:6], str(tmp_path)
    files.keep(output, "a", np.zeros((4, 5, 8, 8), np.float32))
    written = files.write(row(frames), output, ending)
    assert (written["made"], written["frames"]) == (True, None)
    assert sorted(path.name for path in (tmp_path / "videos").iterdir()) == sorted(
        ["a.json", f"a{ending}", "a.thumb.webp"]
    )
    shown = videos.read((tmp_path / "videos" / f"a{ending}").read_bytes(), 6, ending)
    assert shown.shape == frames.shape
    assert Image.open(tmp_path / "videos" / "a.thumb.webp").size == (96, 72)
    sidecar = files.sidecar(output, "a", ending)
    assert sidecar is not None
    whole = (tmp_path / "videos" / f"a{ending}").read_bytes()
    assert sidecar["file"] == {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    assert sidecar["motion_score"] == pytest.approx(motion_score(frames), abs=1e-6)
    assert files.kept(output, "a") is None


def test_a_truncated_video_is_not_finished_and_one_of_an_earlier_version_is(
    tmp_path: Path, moving_frames: np.ndarray
) -> None:
    files.write(row(moving_frames[:6]), str(tmp_path), ".mp4")
    video, sidecar = tmp_path / "videos" / "a.mp4", tmp_path / "videos" / "a.json"
    video.write_bytes(video.read_bytes()[:-1])
    assert files.sidecar(str(tmp_path), "a", ".mp4") is None
    video.unlink()
    assert files.sidecar(str(tmp_path), "a", ".mp4") is None
    facts = json.loads(sidecar.read_text())
    del facts["file"]
    sidecar.write_text(json.dumps(facts))
    assert files.sidecar(str(tmp_path), "a", ".mp4") == facts


def test_a_video_that_cannot_be_encoded_is_a_reject_and_its_latents_stay(
    tmp_path: Path, moving_frames: np.ndarray
) -> None:
    latents = np.random.default_rng(0).normal(size=(4, 5, 8, 8)).astype(np.float32)
    files.keep(str(tmp_path), "a", latents)
    found = files.write(row(moving_frames[:6], fps=0.01), str(tmp_path), ".mp4")
    assert (found["reason"], found["stage"], found["frames"]) == ("failed", "write", None)
    assert "fps" in found["message"]
    assert not (tmp_path / "videos").exists()
    np.testing.assert_array_equal(files.kept(str(tmp_path), "a"), latents)


def test_a_storage_or_temporary_folder_that_fails_is_no_fault_of_the_row(
    tmp_path: Path, moving_frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "videos").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="videos"):
        files.write(row(moving_frames[:6]), str(tmp_path), ".mp4")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match="gone"):
        files.write(row(moving_frames[:6]), str(tmp_path), ".mp4")


def test_latents_of_finished_videos_are_forgotten_and_others_stay(tmp_path: Path) -> None:
    for name in "ab":
        files.keep(str(tmp_path), name, np.zeros((4, 5, 8, 8), np.float32))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.json").write_text("{}")
    files.forget_latents(str(tmp_path))
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["b.npy"]
