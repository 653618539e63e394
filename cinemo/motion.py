"""Motion score (paper, Eq. 2) and motion buckets.

The only module that depends on the direction of buckets: 0 is still, 19 the most motion.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

NUM_BUCKETS = 20
SCORE_DEFINITION = "ssim-rgb-u7-v1"  # stored with every dataset and model; change it when a score would change
OFFICIAL_MOTION = {"kind": "official-demo-100"}  # used when a model directory names no mapping
UNIFORM_MOTION = {"kind": "ssim-uniform-20", "score": SCORE_DEFINITION}  # the mapping of models trained here


# scikit-image's constants for data_range 255, times 49 * 49 and 48 * 49: the scale of the window sums below.
_LUMINANCE = np.float32((0.01 * 255) ** 2 * 49 * 49)
_CONTRAST = np.float32((0.03 * 255) ** 2 * 48 * 49)


def motion_score(frames: np.ndarray) -> float:
    """Mean SSIM of neighbouring frames (Eq. 2): 1 is a still clip, and less is more motion.

    frames: uint8 (N, H, W, 3), RGB, N >= 2, H and W >= 7.
    Equals skimage.metrics.structural_similarity(a, b, channel_axis=-1, data_range=255), averaged over pairs.
    Raises ValueError for another shape or dtype.
    """
    return float(np.mean(neighbour_ssim(frames)))


def neighbour_ssim(frames: np.ndarray) -> np.ndarray:
    """SSIM of every frame with the next: uint8 (N, H, W, 3) -> float64 (N - 1,). Raises like motion_score.

    A process's first call loads the compiled loop from numba's cache; the first call on a machine compiles it. Uses one
    thread and releases the GIL.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; pass uint8 (N, H, W, 3) in RGB")
    count, height, width, _ = frames.shape
    if count < 2 or height < 7 or width < 7:
        raise ValueError(f"frames are {count} of {height} x {width}; SSIM needs at least 2 frames of 7 x 7 pixels")
    columns = _compiled()(np.ascontiguousarray(frames).reshape(count, height, width * 3))
    # float32 sometimes rounds a pixel's SSIM to 1 + 1e-7, and scores above 1 have no bucket.
    return np.minimum(columns.sum(axis=1) / ((height - 6) * columns.shape[1]), 1.0)


@cache
def _compiled() -> Callable[[np.ndarray], np.ndarray]:
    """`_column_ssim`, compiled."""
    from numba import njit, types  # takes 0.25 s to import, and bucket arithmetic does not need it

    # Read-only, because arrays from Ray's object store are; writable arrays are accepted too.
    signature = types.float64[:, ::1](types.Array(types.uint8, 3, "C", readonly=True))
    try:
        return njit(signature, nogil=True, error_model="numpy", cache=True)(_column_ssim)
    except RuntimeError as error:  # neither our folder nor the user's is writable: compile in every process
        if "cannot cache" not in str(error):
            raise
        return njit(signature, nogil=True, error_model="numpy")(_column_ssim)


def _column_ssim(frames: np.ndarray) -> np.ndarray:
    """SSIM of neighbours, summed over the rows of windows: uint8 (N, H, W * 3) -> float64 (N - 1, (W - 6) * 3).

    One pass. A window's sums are at most 49 * 49 * 255**2, which int32 holds exactly. So are its variance and
    covariance, 49 * sum(xy) - sum(x) * sum(y), which are 49 * 48 times the sample's. Only the final quotient is
    float32.
    """
    count, height, width = frames.shape
    inner = width - 18  # a window's 7 columns are 3 values apart
    int32, float32 = np.int32, np.float32  # numba widens int32 * int32 to int64, which halves the speed
    ssim = np.zeros((count - 1, inner))
    nothing = np.zeros(width, np.uint8)
    # Sums over the last 7 rows, per column: the frame, its square, its product with the previous frame.
    column = np.zeros((3, count, width), np.int32)
    # Sum and variance of the window in this frame and in the previous one, in alternating rows.
    total, spread = np.zeros((2, inner), np.int32), np.zeros((2, inner), np.int32)
    for row in range(height):
        for i in range(count):
            new, old = frames[i, row], frames[i, row - 7] if row >= 7 else nothing
            new_before = frames[i - 1, row] if i > 0 else nothing
            old_before = frames[i - 1, row - 7] if i > 0 and row >= 7 else nothing
            x, xx, xy = column[0, i], column[1, i], column[2, i]
            for k in range(width):
                a, b = int32(new[k]), int32(old[k])
                x[k] += a - b
                xx[k] += int32(a * a) - int32(b * b)
                xy[k] += int32(a * int32(new_before[k])) - int32(b * int32(old_before[k]))
            if row < 6:
                continue
            s, v, s_before, v_before = total[i % 2], spread[i % 2], total[1 - i % 2], spread[1 - i % 2]
            for k in range(inner):
                s[k] = x[k] + x[k + 3] + x[k + 6] + x[k + 9] + x[k + 12] + x[k + 15] + x[k + 18]
                squares = xx[k] + xx[k + 3] + xx[k + 6] + xx[k + 9] + xx[k + 12] + xx[k + 15] + xx[k + 18]
                v[k] = int32(49 * squares) - int32(s[k] * s[k])
            if i == 0:
                continue
            out = ssim[i - 1]
            for k in range(inner):
                products = xy[k] + xy[k + 3] + xy[k + 6] + xy[k + 9] + xy[k + 12] + xy[k + 15] + xy[k + 18]
                both = int32(2 * int32(s[k] * s_before[k]))
                similar = (float32(both) + _LUMINANCE) * (float32(int32(int32(98 * products) - both)) + _CONTRAST)
                squared = int32(int32(s[k] * s[k]) + int32(s_before[k] * s_before[k]))
                full = (float32(squared) + _LUMINANCE) * (float32(int32(v[k] + v_before[k])) + _CONTRAST)
                out[k] += similar / full
    return ssim


def motion_bucket(score: float) -> int:
    """Convert a motion score to its bucket, 0..19, uniform in the score; a negative score counts as 0.

    Raises ValueError for a score above 1 or one that is not a number.
    """
    if not score <= 1.0:
        raise ValueError(f"motion score {score} is not an SSIM; it must be at most 1")
    return min(NUM_BUCKETS - 1, math.floor((1.0 - max(0.0, score)) * NUM_BUCKETS))


def motion_id(bucket: int, mapping: Mapping[str, Any]) -> float:
    """Convert a bucket to the number that a model's U-Net receives. mapping: the model directory's.

    mapping["ids"], if present, has one number per bucket: the one with which the model's videos measure that bucket.
    Raises ValueError for a bucket outside 0..19 and for an unknown mapping.
    """
    if isinstance(bucket, bool) or int(bucket) != bucket or not 0 <= bucket < NUM_BUCKETS:
        raise ValueError(
            f"motion_bucket {bucket} is outside 0..{NUM_BUCKETS - 1}; 0 is still, {NUM_BUCKETS - 1} the most"
        )
    kind = mapping.get("kind")
    if kind == UNIFORM_MOTION["kind"]:
        return mapping["ids"][int(bucket)] if "ids" in mapping else int(bucket)
    if kind == OFFICIAL_MOTION["kind"]:  # the official demo's slider is 1..20 and enters as 100 - slider
        return 100 - (int(bucket) + 1)
    raise ValueError(
        f"the model's motion mapping is {kind!r}; this version knows {UNIFORM_MOTION['kind']!r} and "
        f"{OFFICIAL_MOTION['kind']!r}, so upgrade cinemo or mend cinemo.json"
    )
