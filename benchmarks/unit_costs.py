"""Cost of one clip, one training step and one animation on this machine, to size a cluster with.

    python benchmarks/unit_costs.py [--model builtin:tiny] [--device auto] [--steps N] [--repeats 5] [--price 0.05]

One process and one thread: seconds of a core (CPU time, which other load does not lengthen), or of a GPU with a core
(elapsed time). The overhead of the jobs is in benchmarks/prepare.py and train.py. Prints the table of
docs/operations.md: medians and extremes; --price, of an hour of a core or a GPU, adds the cost of 1,000. Takes two
minutes on a core.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from prepare import make_videos
from timing import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CLIPS_PER_VIDEO = 4


def clock(device: str) -> float:
    """Time in seconds: CPU time of this process, or, on a GPU, elapsed time once its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(call: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Seconds of each call, after one untimed call."""
    call()
    seconds = []
    for _ in range(repeats):
        began = clock(device)
        call()
        seconds.append(clock(device) - began)
    return seconds


def measure_clips(model: str, device: str, folder: Path, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Measure the seconds to decode and score, and to encode, a clip of a 360 x 640 video; and its stored bytes."""
    from pipelines.dataset import parts
    from pipelines.prepare import clips, flow
    from pipelines.prepare.config import ExtractConfig

    videos = make_videos(folder / "videos", repeats + 1)
    config = ExtractConfig(model=model, clips_per_video=CLIPS_PER_VIDEO)
    sizes = flow.frame_sizes(config)
    encoder = clips.Encoder(model, flow.identity(config), device)
    clips.warm_up()
    decode_s, encode_s, rows = [], [], []
    for path in sorted(videos.iterdir()):
        for span in clips.make_spans({"uri": str(path), "caption": "", "fault": None}, config, sizes):
            began = clock("cpu")
            row = clips.decode({"reason": None, **span}, config)
            decode_s.append(clock("cpu") - began)
            began = clock(device)
            rows.append(encoder.encode(row))
            encode_s.append(clock(device) - began)
    parts.write(rows, str(folder / "dataset"))
    stored = sum(path.stat().st_size for path in (folder / "dataset").rglob("*.parquet"))
    skip = CLIPS_PER_VIDEO  # the first video loads and compiles
    costs = {"a clip: read, decode, score": decode_s[skip:], "a clip: encode": encode_s[skip:]}
    return costs, stored / len(rows)


def measure_training(model: str, device: str, repeats: int) -> list[float]:
    """Measure the seconds per clip of a training step of four clips: forward, backward and optimizer."""
    from cinemo import checkpoint
    from cinemo.residual import training_loss
    from pipelines.core import models
    from pipelines.train.engine import AdamWithAverage

    directory, facts = models.resolve(model), models.look_up(model)
    card, schedule, factor = facts.card, checkpoint.load_scheduler(directory), facts.factor
    unet = checkpoint.load_unet(directory, device=device).train()
    (height, width), frames = (card.sizes or [(320, 512)])[0], (card.lengths or [16])[0]
    config = unet.config
    latents = torch.randn(4, config["in_channels"], frames, height // factor, width // factor, device=device)
    text = torch.randn(4, 77, config["cross_attention_dim"], device=device)
    noise = torch.randn_like(latents[:, :, 1:])
    buckets, times = torch.full((4,), 10, device=device), torch.full((4,), 500, device=device)
    optimizer = AdamWithAverage(unet.parameters(), 1e-5, 0.999)

    def step() -> None:
        training_loss(unet, latents, text, buckets, times, noise, schedule.alphas_cumprod.to(device)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return [seconds / 4 for seconds in seconds_of(step, device, repeats)]


def measure_videos(
    model: str, device: str, steps: int | None, folder: Path, repeats: int
) -> tuple[dict[str, list[float]], float, int]:
    """Measure the seconds of a video in `steps` (default: the model's), of one step, and of the rest; returns them, the
    bytes of the mp4, and the number of steps."""
    from cinemo import CinemoPipeline
    from cinemo.synthetic.images import photo
    from cinemo.video import write_video
    from pipelines.core import models

    pipe = CinemoPipeline.from_pretrained(models.resolve(model), device=device)
    pipe.set_progress_bar_config(disable=True)
    picture, frames = photo("coffee.png"), []
    few, many = 2, steps or pipe.card.steps

    def animate(count: int) -> None:
        settings = {"num_inference_steps": count, "guidance_scale": pipe.card.guidance}
        frames[:] = pipe(picture, "the camera pans left", **settings).frames
        write_video(folder / "video.mp4", frames[0])

    short, whole = (seconds_of(lambda count=count: animate(count), device, repeats) for count in (few, many))
    step = [(long - brief) / (many - few) for long, brief in zip(whole, short, strict=True)]
    rest = [brief - few * each for brief, each in zip(short, step, strict=True)]
    costs = {f"a video in {many} steps": whole, "a step of it": step, "the rest of it": rest}
    return costs, (folder / "video.mp4").stat().st_size, many


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--steps", type=int, help="denoising steps; default: the model's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--price", type=float, help="price of an hour of a core or a GPU")
    options = parser.parse_args(arguments)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        costs, clip_bytes = measure_clips(options.model, device, folder, options.repeats)
        costs["a clip in a training step"] = measure_training(options.model, device, options.repeats)
        videos, video_bytes, _ = measure_videos(options.model, device, options.steps, folder, options.repeats)
        costs |= videos
    unit = "GPU s" if device == "cuda" else "core s"
    price = f" cost of 1,000 at {options.price:g} an hour |" if options.price else ""
    print(f"| {options.model} | {unit} | of 1,000: {unit.split()[0]} h |{price}")
    print(f"| --- | ---: | ---: |{' ---: |' * bool(price)}")
    for name, seconds in costs.items():
        median = statistics.median(seconds)
        row = f"| {name} | {median:.3g} ({min(seconds):.3g} to {max(seconds):.3g}) | {median / 3.6:.3g} |"
        print(row + (f" {median / 3.6 * options.price:.3g} |" if price else ""))
    print(f"\na clip is {clip_bytes / 1e3:.0f} kB in a dataset, a video {video_bytes / 1e3:.0f} kB; {machine()}")
    medians = {name: float(f"{statistics.median(seconds):.4g}") for name, seconds in costs.items()}
    facts = {"model": options.model, "device": device, "clip_bytes": round(clip_bytes), "video_bytes": video_bytes}
    print(json.dumps({"name": "unit costs", **facts, "seconds": medians, "load": os.getloadavg()[0]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
