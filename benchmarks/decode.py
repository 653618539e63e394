"""Time to read a clip from the middle of a long video, against decoding from the start, and against decord.

    pip install -e ".[bench]"
    OMP_NUM_THREADS=1 python benchmarks/decode.py

One thread and one core each. The video is made for it: 10 minutes of 720p H.264 with B-frames and a keyframe every 250
frames. A clip is 16 frames, 6 apart, at 320 x 512. "from the start" is the same code without its seek. decord is timed
twice, as ours is: one clip from a path, and seven clips of one opening, over which its indexing of the file is spread.
Exits 1 when a bound fails. Takes about three minutes on two idle cores.
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
from PIL import Image
from skimage.data import astronaut
from timing import compare, ratio, report

from cinemo.video import read_span, sample_clip
from cinemo.videodecode import pick_frames
from cinemo.videofile import open_video
from cinemo.videopixels import render_all

WIDTH, HEIGHT, FPS, GOP = 1280, 720, 30, 250
SECONDS = 600
SIZE = (320, 512)
NUM_FRAMES, INTERVAL = 16, 6
MIDDLE = (
    SECONDS * FPS // 2 // GOP * GOP + GOP // 2
)  # halfway between two keyframes: what a random clip meets on average
BOUND_START, BOUND_DECORD = 10.0, 1.0


def scene(count: int) -> Iterator[np.ndarray]:
    """uint8 (720, 1280, 3) frames: a photo under a camera that pans and zooms, something that crosses it, and grain."""
    photo = Image.fromarray(np.concatenate([astronaut(), astronaut()[:, ::-1]], axis=1))
    rng = np.random.default_rng(0)
    grain = rng.integers(-9, 10, (HEIGHT + 64, WIDTH + 64, 1), np.int16)
    for k in range(count):
        phase = 2 * np.pi * k / count  # the scene ends as it began, so that it can be repeated
        width = 700 + 120 * np.cos(phase)
        left, top = 100 + 90 * np.sin(phase), 25 + 22 * np.cos(2 * phase)
        box = (left, top, left + width, top + width * HEIGHT / WIDTH)
        picture = np.asarray(photo.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box), np.int16)
        x, y = int(k * 9 % (WIDTH - 160)), int(280 + 200 * np.sin(5 * phase))
        picture[y : y + 160, x : x + 160] = (40 + k % 120, 160, 200)
        dy, dx = rng.integers(0, 64, 2)
        yield (picture + grain[dy : dy + HEIGHT, dx : dx + WIDTH]).clip(0, 255).astype(np.uint8)


def make_video(path: Path) -> None:
    """Write a video: one group of pictures, encoded once, whose packets are repeated to ten minutes."""
    short = path.with_name("short.mp4")
    with av.open(str(short), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "x264-params": f"keyint={GOP}:scenecut=0:bframes=3:b-pyramid=normal"}
        for picture in scene(GOP):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(short)) as source, av.open(str(path), "w") as container:
        template = source.streams.video[0]
        copy = container.add_stream_from_template(template)
        length = round(GOP / (FPS * template.time_base))
        packets = [(p.pts, p.dts, p.is_keyframe, bytes(p)) for p in source.demux(template) if p.size]
        for repeat, (pts, dts, key, data) in itertools.product(range(SECONDS * FPS // GOP), packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = copy, template.time_base, key
            packet.pts, packet.dts = pts + repeat * length, dts + repeat * length
            container.mux(packet)


def from_the_start(path: Path, start: int) -> np.ndarray:
    """Read the clip by the same code without its seek: every frame before it is decoded."""
    with open_video(path) as video:
        ticks = 1 / (Fraction(FPS) * video.stream.time_base)
        targets = [(start + INTERVAL * k) * ticks for k in range(NUM_FRAMES)]
        return np.stack(list(render_all(pick_frames(video.container.decode(video.stream), targets, ticks), SIZE)))


def indices(start: int) -> list[int]:
    return list(range(start, start + NUM_FRAMES * INTERVAL, INTERVAL))


def decord_reader(path: Path) -> Callable[[], Any] | None:
    """Return a function that opens the video with decord, one thread, at our size; None if decord is not installed."""
    try:
        import decord
    except ImportError:
        return None

    def reader(size: tuple[int, int] = SIZE) -> Any:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), width=size[1], height=size[0], num_threads=1)

    same = (180, 320)  # the video's aspect ratio, so that neither side crops or stretches: are these the same frames?
    theirs = reader(same).get_batch(indices(MIDDLE)).asnumpy().astype(int)
    ours = sample_clip(path, MIDDLE, INTERVAL, NUM_FRAMES, same).astype(int)
    distances = np.abs(theirs[:, None] - ours[None]).mean(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(NUM_FRAMES)).all(), "decord and cinemo disagree on which frames"
    return reader


def several(opened: Any, starts: list[int]) -> list[np.ndarray]:
    return [opened.get_batch(indices(start)).asnumpy() for start in starts]


def one_core() -> None:
    """Keep this process on one core: decord has threads besides its decoding thread, which would use a second core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def against_start(path: Path) -> int:
    clips: dict[str, np.ndarray] = {}
    functions: dict[str, Callable[[], object]] = {
        "start": lambda: clips.update(start=from_the_start(path, MIDDLE)),
        "clip": lambda: clips.update(clip=sample_clip(path, MIDDLE, INTERVAL, NUM_FRAMES, SIZE)),
    }
    seconds = compare(functions, repeats=3, warm=False)
    assert np.array_equal(clips["start"], clips["clip"]), "seeking changed the pixels"
    times = ratio(seconds["start"], seconds["clip"])
    return report("clip vs decoding from the start", times, times.ratio >= BOUND_START, bound=BOUND_START)


def against_decord(path: Path) -> int:
    reader = decord_reader(path)
    if reader is None:
        print('clip vs decord: skipped, because decord is not installed; pip install -e ".[bench]"')
        return 0
    functions: dict[str, Callable[[], object]] = {
        "theirs": lambda: reader().get_batch(indices(MIDDLE)).asnumpy(),
        "ours": lambda: sample_clip(path, MIDDLE, INTERVAL, NUM_FRAMES, SIZE),
    }
    seconds = compare(functions, repeats=7)
    times = ratio(seconds["theirs"], seconds["ours"])
    status = report("clip vs decord, from a path", times, times.ratio >= BOUND_DECORD, bound=BOUND_DECORD)

    starts = [MIDDLE + GOP * k + 31 * k for k in range(-3, 4)]  # seven places in seven groups of pictures
    functions = {
        "theirs": lambda: several(reader(), starts),
        "ours": lambda: opened_once(path, starts),
    }
    seconds = compare(functions, repeats=5)
    times = ratio(seconds["theirs"], seconds["ours"])
    return status | report("7 clips of one opening vs decord", times, times.ratio >= BOUND_DECORD, bound=BOUND_DECORD)


def opened_once(path: Path, starts: Sequence[int]) -> list[np.ndarray]:
    """Read the clips that begin at these frames, and open the file once."""
    with open_video(path) as video:
        return [read_span(video, start, INTERVAL, NUM_FRAMES, SIZE) for start in starts]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        began = time.perf_counter()
        make_video(path)
        print(f"made {path.stat().st_size / 1e6:.0f} MB in {time.perf_counter() - began:.0f} s", flush=True)
        one_core()
        return against_start(path) | against_decord(path)


if __name__ == "__main__":
    sys.exit(main())
