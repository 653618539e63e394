"""One case under one variant -> a row of numbers: the real clip, its image, the animation, every metric.

A fault of one case is a reject row, never an exception. A row depends only on its case and variant.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cinemo.image import fit_pixels
from cinemo.latents import to_frames
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
VIDEOS = "videos"  # folder below the output; videos:OUT/videos/VARIANT can be evaluated as a model


class Networks:
    """The networks of the requested metrics, loaded once; None for the others."""

    def __init__(self, config: EvaluateConfig, device: str) -> None:
        """Raises ValueError for weights of another network, and for clips that are too short for one."""

        def load(metric: str, loader: Any, weights: str | None) -> Any:
            return loader(weights, device) if metric in config.measured else None

        self.i3d = load("fvd", networks.load_i3d, config.i3d)
        self.c3d = load("is", networks.load_c3d, config.c3d)
        self.inception = load("fid", networks.load_inception, config.inception)
        self.clip = load("clipsim", networks.load_clip, config.clip)
        self.lpips = load("lpips", networks.load_lpips, config.lpips)
        for network in (self.i3d, self.c3d):  # these raise for clips that are too short
            if network is not None:
                network(np.zeros((config.num_frames, 64, 64, 3), np.uint8))


def real_clip(
    case: Mapping[str, Any], config: EvaluateConfig, size: tuple[int, int], run: clips.Run
) -> tuple[np.ndarray, np.ndarray]:
    """Read the dataset's own clip, uint8 (N, H, W, 3), and the image to animate. Raises VideoError.

    The image is a random frame of the clip (paper, section 4.1), but the first frame of a synthetic clip, whose motion
    is known from there.
    """
    if case["kind"] is not None:
        number = int(case["uri"].rsplit(":", 1)[1])
        clip = make_clip(number, size, config.num_frames, kinds=(case["kind"],), held_out=True).frames
        return clip, clip[0]
    sampling = SamplingConfig(
        clips_per_video=1, num_frames=config.num_frames, min_interval=config.min_interval,
        max_interval=config.max_interval, scene_cut=None, max_enlargement=None, seed=config.seed,
    )  # fmt: skip
    [span] = clips.make_spans(case, sampling, [size], run)
    row = clips.decode({"reason": None, **span}, sampling, run)
    if row["reason"]:
        raise VideoError(row["reason"], row["message"])
    clip = np.frombuffer(row["frames"], np.uint8).reshape(config.num_frames, *size, 3)
    return clip, clip[draw(config.seed, "image", case["uri"]) % len(clip)]


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale and crop an image to `size`: uint8 (H, W, 3)."""
    if image.shape[:2] == size:
        return image
    return to_frames(fit_pixels(image, *size))[0]


def measure(
    case: Mapping[str, Any],
    variant: Variant,
    animate: animators.Animator | None,
    nets: Networks,
    config: EvaluateConfig,
    size: tuple[int, int],
    run: clips.Run = clips.directly,
) -> Row:
    """Measure a case under a variant, and write its video; returns the row. animate is None for the real clips."""
    row: Row = {"id": case["id"], "name": case["name"], "variant": variant.label, "reason": None}
    began = time.perf_counter()
    try:
        clip, image = real_clip(case, config, size, run)
    except VideoError as error:
        return clips.fault(row, "read", error)
    requested = motion_bucket(motion_score(clip)) if config.motion_bucket is None else config.motion_bucket
    seed = draw(config.seed, "noise", case["uri"]) % 2**63
    if animate is not None:
        request = animators.AnimationRequest(
            case["name"], fitted(image, size), case["caption"], requested, seed, config.num_frames
        )
        try:
            clip = animate(request, variant.settings)
        except Exception as error:
            return clips.fault(row, "animate", error)
    seconds = time.perf_counter() - began
    row |= {
        "prompt": case["caption"],
        "kind": case["kind"],
        "direction": case["direction"],
        "seed": seed,
        "requested_bucket": requested,
        "seconds": seconds,
        "video": storage.join(VIDEOS, folder(variant), f"{case['name']}.mp4"),
    }
    row |= numbers(clip, image, row, nets, config)
    storage.put(storage.join(config.output, row["video"]), videos.video(clip, FPS))  # before the row that names it
    return row


def numbers(clip: np.ndarray, image: np.ndarray, row: Mapping[str, Any], nets: Networks, config: EvaluateConfig) -> Row:
    """Compute the requested metrics of one clip, uint8 (N, H, W, 3)."""
    score = motion_score(clip)
    metrics: Row = {"score": score, "measured_bucket": motion_bucket(score)}
    measured = config.measured
    if "fidelity" in measured and row["variant"] != REAL:
        psnr, metrics["ssim"] = frames.first_frame_fidelity(clip, image)
        metrics["psnr"] = min(psnr, 100.0)
    if "smoothness" in measured:
        metrics |= {"smoothness": frames.smoothness(clip), "abruptness": frames.abruptness(clip)}
    if "colour" in measured:
        metrics["colour_drift"] = frames.colour_drift(clip).tolist()
        metrics["mean_colour_drift"] = frames.mean_colour_drift(clip).tolist()
    if {"consistency", "direction"} & set(measured):
        motion, metrics["consistency"] = flow.measure(clip)
        metrics |= {name: getattr(motion, name) for name in ("right", "down", "outward", "clockwise")}
        if row["kind"] is not None:
            metrics["agrees"] = flow.agrees(motion, row["kind"], row["direction"])
    for name in ("i3d", "c3d", "inception"):
        if (network := getattr(nets, name)) is not None:
            metrics[name] = network(clip).astype(np.float32).ravel()
    if nets.clip is not None:
        metrics["clipsim"], metrics["clip_consistency"] = nets.clip(clip, row["prompt"])
    if nets.lpips is not None and row["variant"] != REAL:
        metrics["lpips"] = nets.lpips(clip[0], image)
    return metrics


def folder(variant: Variant) -> str:
    """Folder name of a variant's videos, from its label."""
    kept = "".join(c if c.isalnum() or c in ".-=" else "_" for c in variant.label.rsplit("/", 1)[-1])
    return f"{kept}-{draw(0, variant.label) % 16**4:04x}" if variant.model != REAL else REAL
