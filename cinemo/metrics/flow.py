"""Optical flow of a clip: the direction of motion, and how well motion alone explains the change between frames.

The flow is scikit-image's iterative Lucas-Kanade (Le Besnerais and Champagnat, 2005) on grey pictures of about 64 rows.
Image axes: x to the right, y down.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity
from skimage.registration import optical_flow_ilk
from skimage.transform import downscale_local_mean, warp

ROWS = 64  # of the pictures whose flow is estimated: enough for directions, and fast
GAP = 2  # frames from one compared frame to the other: enough to see slow motion, few enough to overlap
LEAST = 0.5 / 128  # heights over the whole clip: smaller motion has no direction
FIT_ROUNDS = 4


class Motion(NamedTuple):
    """Motion of the content over a whole clip, in frame heights (clockwise: radians)."""

    right: float  # background, as are all others down to wider
    down: float
    outward: float  # at one height from the centre: zooming in is positive
    clockwise: float
    wider: float  # at one height from the centre: stretch sideways, less twice that up or down, so that no zoom counts
    object_right: float  # the tenth of the pixels that departs most from the background
    object_down: float


def small_grey(frames: np.ndarray) -> np.ndarray:
    """Convert frames to small grey pictures: uint8 (N, H, W, 3) -> float (N, about 64, w) in [0, 1]."""
    factor = max(1, round(frames.shape[1] / ROWS))
    return downscale_local_mean(rgb2gray(frames), (1, factor, factor))


def flows(grey: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (frame, later frame, flow (2, h, w) in pixels: down, right) for frames GAP apart, or a clip's ends."""
    gap = min(GAP, len(grey) - 1)
    for before, after in zip(grey[:-gap:gap], grey[gap::gap], strict=False):
        yield before, after, optical_flow_ilk(before, after, radius=5, num_warp=8)


def measure(frames: np.ndarray) -> tuple[Motion, float]:
    """Measure the motion of a clip, uint8 (N, H, W, 3) with N >= 2, and its consistency.

    Consistency: mean SSIM of a frame with the one two later, warped back along the flow. 1 is content that only moves;
    content that appears, vanishes, flickers or deforms lowers it.
    """
    total = np.zeros(len(Motion._fields))
    similar = []
    for before, after, flow in flows(small_grey(frames)):
        total += clip_motion(flow)
        rows, columns = np.meshgrid(*map(np.arange, before.shape), indexing="ij")
        back = warp(after, np.stack([rows + flow[0], columns + flow[1]]), mode="edge")
        similar.append(structural_similarity(before, back, data_range=1.0))
    return Motion(*map(float, total)), float(np.mean(similar))


def clip_motion(flow: np.ndarray) -> np.ndarray:
    """Reduce one flow (2, h, w) to the numbers of Motion: a robust affine fit, and the motion of outliers."""
    height, width = flow.shape[1:]
    y, x = np.mgrid[0:height, 0:width]
    y, x = (y - (height - 1) / 2) / height, (x - (width - 1) / 2) / height
    places = np.stack([np.ones(height * width), x.ravel(), y.ravel()], axis=1)
    moved = flow.reshape(2, -1)[::-1].T / height  # right, down; in heights
    weights = np.ones((len(places), 1))
    for _ in range(FIT_ROUNDS):  # least squares, each time with less weight for outliers
        fit = np.linalg.lstsq(places * weights, moved * weights, rcond=None)[0]
        rest = moved - places @ fit
        error = np.linalg.norm(rest, axis=1, keepdims=True)
        weights = 1 / np.hypot(1, error / (np.median(error) + 1e-9))
    far = error[:, 0] >= np.quantile(error, 0.9)
    outward, clockwise = (fit[1, 0] + fit[2, 1]) / 2, (fit[1, 1] - fit[2, 0]) / 2
    wider = fit[1, 0] - 2 * abs(fit[2, 1])
    return np.array([*fit[0], outward, clockwise, wider, *rest[far].mean(axis=0)])


def agrees(motion: Motion, kind: str, direction: str) -> bool | None:
    """Whether the motion has the direction of the prompt; None for kinds without a direction (sway, still, ...).

    kind, direction: as in cinemo.synthetic. A camera that pans left moves the content to the right.
    """
    sign = {"left": -1, "right": 1, "up": -1, "down": 1, "in": 1, "out": -1, "clockwise": 1, "counterclockwise": -1}
    sign |= {"wide": 1}
    if direction not in sign:
        return None
    across = direction in ("left", "right")
    measured = {
        "pan": -(motion.right if across else motion.down),
        "object": motion.object_right if across else motion.object_down,
        "zoom": motion.outward,
        "rotate": motion.clockwise,
        "stretch": motion.wider,
    }[kind]
    return bool(measured * sign[direction] > LEAST)
