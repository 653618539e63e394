"""Every way in which a video can be bad, in one job: a reject row each, and the good ones are there."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest

from cinemo.synthetic import write_clips
from cinemo.video import write_video
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig
from tests.pipelines.conftest import SMALL, rows

pytestmark = pytest.mark.ray

MANY = 100  # videos: 25 slices of the manifest, and more clips than are under way at once
EXPECTED = {
    "audio": ("probe", "no_video"),
    "brief": ("probe", "too_short"),
    "codec": ("probe", "unsupported"),
    "crash": ("probe", "crashed"),
    "cut": ("score", "scene_cut"),
    "empty": ("probe", "unreadable"),
    "garbage": ("probe", "unreadable"),
    "gone": ("probe", "missing"),
    "hang": ("probe", "timeout"),
    "huge": ("probe", "too_large"),
    "caption": ("source", "bad_caption"),
    "locked": ("probe", "unreadable"),
    "truncated": ("decode", "corrupt"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one video of each kind of fault, and two good ones. captions.csv names what no listing shows."""
    folder = tmp_path_factory.mktemp("zoo")
    write_clips(folder, 2, size=(64, 96), num_frames=60)
    good = sorted(folder.glob("*.mp4"))[0]
    data = good.read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "garbage.mp4").write_bytes(b"not a video" * 999)
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 3])
    (folder / "codec.mp4").write_bytes(data.replace(b"avc1", b"zzzz"))
    (folder / "caption.mp4").write_bytes(data)
    (folder / "caption.json").write_text("{broken")
    write_video(folder / "brief.mp4", np.zeros((2, 64, 64, 3), np.uint8))
    black, white = np.zeros((8, 64, 64, 3), np.uint8), np.full((8, 64, 64, 3), 255, np.uint8)
    write_video(folder / "cut.mp4", np.concatenate([black, white] * 4))  # a cut in whichever span is drawn
    audio(folder / "audio.mp4")
    huge(folder / "huge.avi")
    for name in ("hang", "crash"):
        os.mkfifo(folder / f"{name}.mp4")
    (folder / "locked.mp4").mkdir()  # root may read every file, but a folder is none
    with (folder / "captions.csv").open("a") as manifest:
        for name in ("gone", "hang", "crash", "locked"):
            manifest.write(f",{name}.mp4,a cat,,\n")
    return folder


def audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def huge(path: Path, side: int = 16_000) -> None:
    """A small video whose header claims to be side x side pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    place = data.index(b"strf") + 12  # width and height in its bitmap header
    data[place : place + 8] = side.to_bytes(4, "little") * 2
    path.write_bytes(data)


@pytest.fixture
def killer(zoo: Path) -> Iterator[None]:
    """SIGKILLs whichever process opens crash.mp4, as a decoder that a file brings down."""
    stop = threading.Event()
    path = zoo / "crash.mp4"

    def watch() -> None:
        while not stop.is_set():
            try:
                end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # fails until somebody opens it to read
            except OSError:
                time.sleep(0.02)
                continue
            for process in psutil.process_iter():
                if process.pid != os.getpid() and opens(process, path):
                    os.kill(process.pid, signal.SIGKILL)
            os.close(end)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    stop.set()
    thread.join()


def opens(process: psutil.Process, path: Path) -> bool:
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return False
    return str(path) in links


def test_every_fault_is_one_reject_row_and_the_rest_is_done(
    zoo: Path, killer: None, ray_cluster: None, tracking_uri: str, tmp_path: Path
) -> None:
    faulty: dict[str, Any] = {"clip_timeout": 3, "scene_cut": 0.02, "min_interval": 9, **SMALL}
    config = PrepareConfig(input=str(zoo), output=str(tmp_path / "ds"), tracking_uri=tracking_uri, **faulty)
    summary = prepare.run(prepare.resolve(config))
    found = {Path(row["uri"]).stem: row for row in rows(config.output, "rejects")}
    assert {name: (row["stage"], row["reason"]) for name, row in found.items()} == EXPECTED
    assert len(rows(config.output, "rejects")) == len(EXPECTED)
    assert summary["counts"]["clips"] == 2
    assert summary["too_many_rejects"]
    assert all(row["message"] for row in found.values())
    assert "the decoder crashed 2 times: killed by SIGKILL" in found["crash"]["message"]
    assert "column 2" in found["caption"]["message"]


def test_many_videos_go_through(ray_cluster: None, tracking_uri: str, tmp_path: Path, videos: Path) -> None:
    originals = sorted(path for path in videos.glob("*.mp4") if path.stem not in ("brief", "broken"))
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(MANY):
        shutil.copy(originals[number % len(originals)], folder / f"{number:03}.mp4")
    config: dict[str, Any] = {**SMALL, "num_frames": 2, "tracking_uri": tracking_uri}
    made = prepare.run(prepare.resolve(PrepareConfig(input=str(folder), output=str(tmp_path / "ds"), **config)))
    assert made["counts"] == {
        **{"videos": MANY, "clips": MANY},
        **{"rejected_videos": 0, "rejected_clips": 0, "rejects": {}},
    }
    stored = rows(tmp_path / "ds")
    assert len({row["clip_id"] for row in stored}) == len({row["uri"] for row in stored}) == MANY
    assert made["clips_per_second"].keys() == {"job", "decode", "score", "encode", "write"}
