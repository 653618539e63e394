"""One case under one variant -> a row of numbers: the real clip, its image, the animation, every metric.

A fault of one case is a reject row, never an exception. Knows metrics and animators. Knows nothing of Ray, or of other
cases: what a row becomes depends on the case and the variant alone.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cinemo.image import fit_pixels
from cinemo.metrics import flow, frames, networks
from cinemo.motion import motion_bucket, motion_score
from cinemo.synthetic import make_clip
from cinemo.video import VideoError
from pipelines.animate import videos
from pipelines.core import storage
from pipelines.evaluate import animators
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant
from pipelines.evaluate.datasets import draw
from pipelines.prepare import clips
from pipelines.prepare.config import SamplingConfig

Row = dict[str, Any]
FPS = 8.0
VIDEOS = "videos"  # folder below the output; videos:OUT/videos/VARIANT is a model again


class Networks:
    """The networks of the metrics that are asked for, loaded once; None for those that are not."""

    def __init__(self, config: EvaluateConfig, device: str) -> None:
        """Raises ValueError for weights of another network, and for clips that are too short for one."""
        wanted = config.measured

        def load(metric: str, loader: Any, weights: str | None) -> Any:
            return loader(weights, device) if metric in wanted else None

        self.i3d = load("fvd", networks.load_i3d, config.i3d)
        self.c3d = load("is", networks.load_c3d, config.c3d)
        self.inception = load("fid", networks.load_inception, config.inception)
        self.clip = load("clipsim", networks.load_clip, config.clip)
        self.lpips = load("lpips", networks.load_lpips, config.lpips)
        for network in (self.i3d, self.c3d):  # they refuse clips that are too short for them
            if network is not None:
                network(np.zeros((config.num_frames, 64, 64, 3), np.uint8))


def real_clip(
    case: Mapping[str, Any], config: EvaluateConfig, size: tuple[int, int], run: clips.Run
) -> tuple[np.ndarray, np.ndarray]:
    """The dataset's own clip, uint8 (N, H, W, 3), and the image that is animated. Raises VideoError.

    The image is a random frame of the clip (paper, section 4.1), but a synthetic clip's first: its motion is known from
    there.
    """
    if case["kind"] is not None:
        number = int(case["uri"].rsplit(":", 1)[1])
        clip = make_clip(number, size, config.num_frames, kinds=(case["kind"],), held_out=True).frames
        return clip, clip[0]
    sampling = SamplingConfig(
        clips_per_video=1, num_frames=config.num_frames, min_interval=config.min_interval,
        max_interval=config.max_interval, scene_cut=None, seed=config.seed,
    )  # fmt: skip
    [span] = clips.make_spans(case, sampling, size, run)
    row = clips.decode({"reason": None, **span}, sampling, size, run)
    if row["reason"]:
        raise VideoError(row["reason"], row["message"])
    clip = np.frombuffer(row["frames"], np.uint8).reshape(config.num_frames, *size, 3)
    return clip, clip[draw(config.seed, "image", case["uri"]) % len(clip)]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image as a model gets it: uint8 (H, W, 3) at `size`."""
    if image.shape[:2] == size:
        return image
    return ((fit_pixels(image, *size)[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def measure(
    case: Mapping[str, Any],
    variant: Variant,
    animate: animators.Animator | None,
    nets: Networks,
    config: EvaluateConfig,
    size: tuple[int, int],
    run: clips.Run = clips.directly,
) -> Row:
    """The row of a case under a variant, its video written; animate is None for the real clips."""
    row: Row = {"id": case["id"], "name": case["name"], "variant": variant.label, "reason": None}
    began = time.perf_counter()
    try:
        clip, image = real_clip(case, config, size, run)
    except VideoError as error:
        return clips.fault(row, "read", error)
    asked = motion_bucket(motion_score(clip)) if config.motion_bucket is None else config.motion_bucket
    seed = draw(config.seed, "noise", case["uri"]) % 2**63
    if animate is not None:
        request = animators.AnimationRequest(
            case["name"], fitted(image, size), case["caption"], asked, seed, config.num_frames
        )
        try:
            clip = animate(request, variant.settings)
        except Exception as error:
            return clips.fault(row, "animate", error)
    made = time.perf_counter() - began
    row |= {
        "prompt": case["caption"],
        "kind": case["kind"],
        "direction": case["direction"],
        "seed": seed,
        "requested_bucket": asked,
        "seconds": made,
        "video": storage.join(VIDEOS, folder(variant), f"{case['name']}.mp4"),
    }
    row |= numbers(clip, image, row, nets, config)
    storage.put(storage.join(config.output, row["video"]), videos.video(clip, FPS))  # before the row that names it
    return row


def numbers(clip: np.ndarray, image: np.ndarray, row: Mapping[str, Any], nets: Networks, config: EvaluateConfig) -> Row:
    """Every metric of one clip that is asked for."""
    score = motion_score(clip)
    found: Row = {"score": score, "measured_bucket": motion_bucket(score)}
    wanted = config.measured
    if "fidelity" in wanted and row["variant"] != REAL:
        psnr, found["ssim"] = frames.first_frame_fidelity(clip, image)
        found["psnr"] = min(psnr, 100.0)
    if "smoothness" in wanted:
        found |= {"smoothness": frames.smoothness(clip), "abruptness": frames.abruptness(clip)}
    if "colour" in wanted:
        found["colour_drift"] = frames.colour_drift(clip).tolist()
        found["mean_colour_drift"] = frames.mean_colour_drift(clip).tolist()
    if {"consistency", "direction"} & set(wanted):
        motion, found["consistency"] = flow.measure(clip)
        found |= {name: getattr(motion, name) for name in ("right", "down", "outward", "clockwise")}
        if row["kind"] is not None:
            found["agrees"] = flow.agrees(motion, row["kind"], row["direction"])
    for name in ("i3d", "c3d", "inception"):
        if (network := getattr(nets, name)) is not None:
            found[name] = network(clip).astype(np.float32).ravel()
    if nets.clip is not None:
        found["clipsim"], found["clip_consistency"] = nets.clip(clip, row["prompt"])
    if nets.lpips is not None and row["variant"] != REAL:
        found["lpips"] = nets.lpips(clip[0], image)
    return found


def folder(variant: Variant) -> str:
    """A name for a variant's videos, from its label."""
    kept = "".join(c if c.isalnum() or c in ".-=" else "_" for c in variant.label.rsplit("/", 1)[-1])
    return f"{kept}-{draw(0, variant.label) % 16**4:04x}" if variant.model != REAL else REAL
