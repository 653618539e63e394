"""Writing video files: every format, odd sizes, and nothing half-written."""

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from cinemo.motion import motion_bucket, motion_score
from cinemo.provenance import DRAWN, packet, png_info, read_mark
from cinemo.video import load_clip, probe, sample_clip
from cinemo.videowrite import write_video
from tests.videos import corners, numbered, quadrants


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
@pytest.mark.parametrize("shape", [(5, 32, 48, 3), (2, 33, 47, 3)])
def test_every_format_and_odd_sizes_are_written(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "new" / f"clip{suffix}"
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_video(path, frames, fps=8)
    if suffix in (".mp4", ".webm"):
        assert probe(path)[:4] == (shape[0], 8.0, shape[2] + shape[2] % 2, shape[1] + shape[1] % 2)
    else:
        assert getattr(Image.open(path), "n_frames", 1) == shape[0]
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing temporary is left


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_equal_frames_give_equal_files(tmp_path: Path, suffix: str) -> None:
    """With several threads, and with AVX-512, x264 wrote one of several files."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (8, 12, 3)).repeat(8, 0).repeat(8, 1)
    moved = np.stack([np.roll(blocks, 3 * k, 1) for k in range(4)])
    frames = (moved + draw.integers(-20, 20, moved.shape)).clip(0, 255).astype(np.uint8)
    files = set()
    for k in range(60 if suffix == ".mp4" else 5):
        np.full(1 << (10 + k % 12), k, np.uint8)  # the memory that an encoder gets has other contents every time
        write_video(tmp_path / f"same{suffix}", frames, 8)
        files.add((tmp_path / f"same{suffix}").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize(
    ("name", "fps", "words"),
    [
        ("a.txt", 8, "ends in .txt"),
        ("a", 8, "ends in nothing"),
        ("a.mp4", 0, "fps 0"),
        ("a.gif", 60, "fps 60 is outside 1..50: browsers would play a faster .gif at 10; use .mp4"),
        ("a.webp", 120, "fps 120 is outside 1..90: browsers"),
        ("a.gif", 500, "fps 500 is outside 1..50$"),
    ],
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


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_what_was_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    frames = np.stack(numbered(16))
    write_video(tmp_path / f"o{suffix}", frames, 8)
    clip = load_clip(tmp_path / f"o{suffix}", 0, 1, 16, None)
    assert np.abs(clip.frames.astype(int) - frames).mean() < 4
    assert motion_bucket(motion_score(clip.frames)) == motion_bucket(motion_score(frames))
    assert clip.traits.fps == pytest.approx(8, rel=0.01)
    assert not clip.traits.variable_rate


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("fps", [8, 24, 50])
def test_equal_frames_stay_frames_and_last_as_long_as_asked(tmp_path: Path, suffix: str, fps: int) -> None:
    path = tmp_path / f"still{suffix}"
    write_video(path, np.stack([quadrants()] * 16), fps)
    with Image.open(path) as picture:
        lengths = []
        for frame in ImageSequence.Iterator(picture):
            frame.load()  # its time is known only then
            lengths.append(frame.info["duration"])
        assert picture.info["loop"] == 0  # for ever
    assert len(lengths) == 16
    assert min(lengths) >= 20
    assert sum(lengths) == pytest.approx(16_000 / fps, abs=10)
    assert sample_clip(path, 0, 1, 16).shape == (16, 64, 96, 3)


@pytest.mark.parametrize(("height", "number"), [(64, 6), (718, 6), (720, 1)])
def test_mp4_says_which_colours_it_was_made_with(tmp_path: Path, height: int, number: int) -> None:
    path = tmp_path / "o.mp4"
    write_video(path, np.stack([quadrants(height, 96)] * 3))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range) == (*[number] * 3, 1)
        plain = frame.reformat(format="rgb24", src_colorspace={1: "ITU709", 6: "ITU601"}[number]).to_ndarray()
    data = path.read_bytes()
    at = data.index(b"colr")  # the container says it too: nclx, primaries, transfer, matrix
    assert data[at + 4 : at + 14] == b"nclx" + number.to_bytes(2) * 3
    assert data.index(b"moov") < data.index(b"mdat")  # it plays while it loads
    for picture in (plain, sample_clip(path, 0, 1, 2)[1]):
        assert np.abs(np.subtract(corners(picture), corners(quadrants()))).max() <= 3


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif", ".webp"])
def test_a_video_is_marked_as_generated_and_plays_as_before(tmp_path: Path, ending: str, count: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), np.uint8)
    path = tmp_path / f"a{ending}"
    write_video(path, frames, 8)
    assert read_mark(path) == "trainedAlgorithmicMedia"
    if count > 1:  # a WebP of one frame is a picture
        assert len(sample_clip(path, 0, 1, count)) == count
    if ending == ".webp":
        with Image.open(path) as picture:
            assert picture.info["xmp"] == packet()
    if ending == ".gif":  # sub-blocks, as a reader that knows no XMP skips them
        data = path.read_bytes()
        at = data.index(b"!\xff\x0bXMP DataXMP") + 14
        while data[at]:
            at += data[at] + 1
        assert data[at + 1 : at + 2] in (b"!", b",")
    again = tmp_path / f"b{ending}"
    write_video(again, frames, 8)
    assert again.read_bytes() == path.read_bytes()
    write_video(again, frames, 8, DRAWN)
    assert read_mark(again) == "algorithmicMedia"


def test_the_boxes_of_a_marked_mp4_end_where_the_file_ends(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((2, 32, 48, 3), np.uint8), 8)
    data, names, at = (tmp_path / "a.mp4").read_bytes(), [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        names, at = [*names, name], at + size
    assert at == len(data)
    assert names[-1] == b"uuid"
    assert data[:32].find(b"moov") < data.find(b"mdat")


def test_the_tags_of_a_marked_webm_are_in_its_segment(tmp_path: Path) -> None:
    write_video(tmp_path / "a.webm", np.zeros((2, 32, 48, 3), np.uint8), 8)
    data = (tmp_path / "a.webm").read_bytes()
    start = data.index(bytes.fromhex("18538067")) + 12  # after the id and 8 bytes of length
    assert start + int.from_bytes(data[start - 7 : start]) == len(data)
    assert data.index(bytes.fromhex("1254c367")) > start
    assert packet() == data[-len(packet()) :]


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"xmp": packet()}), ("WEBP", {"xmp": packet()}),
                                               ("PNG", {"pnginfo": png_info()})])  # fmt: skip
def test_a_picture_is_marked_too(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a", kind, **options)
    assert read_mark(tmp_path / "a") == "trainedAlgorithmicMedia"
    Image.new("RGB", (8, 8)).save(tmp_path / "b", kind)
    assert read_mark(tmp_path / "b") is None
