"""Motion score (paper, Eq. 2) and motion buckets.

Knows pixels and SSIM. Knows nothing of video files, latents or Ray. The only place that knows which way a bucket
points: 0 is still, 19 is the most motion.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

NUM_BUCKETS = 20
SCORE_DEFINITION = "ssim-rgb-u7-v1"  # stored with every dataset and model; change it when a score would change
OFFICIAL_MOTION = {"kind": "official-demo-100"}  # the mapping of a model directory that states none
UNIFORM_MOTION = {"kind": "ssim-uniform-20", "score": SCORE_DEFINITION}  # the mapping of models trained here


def motion_score(frames: np.ndarray) -> float:
    """Mean SSIM of neighbouring frames: 1 is a still clip (Eq. 2).

    frames: uint8 (N, H, W, 3), RGB, N >= 2, H and W >= 7.
    Equals skimage.metrics.structural_similarity(a, b, channel_axis=-1, data_range=255), averaged over pairs.
    Raises ValueError when the shape or the dtype is another.
    """
    return float(np.mean(neighbour_ssim(frames)))


def neighbour_ssim(frames: np.ndarray) -> np.ndarray:
    """SSIM of every frame with the next: uint8 (N, H, W, 3) -> float64 (N - 1,). Raises as motion_score."""
    from skimage.metrics import structural_similarity  # 0.25 s to import; bucket arithmetic does not need it

    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; pass uint8 (N, H, W, 3) in RGB")
    count, height, width, _ = frames.shape
    if count < 2 or height < 7 or width < 7:
        raise ValueError(f"frames are {count} of {height} x {width}; SSIM needs at least 2 frames of 7 x 7 pixels")
    return np.array([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairwise(frames)])


def motion_bucket(score: float) -> int:
    """Motion score -> bucket 0..19, uniform in the score; a negative score counts as 0.

    Raises ValueError for a score above 1 or one that is not a number.
    """
    if not score <= 1.0:
        raise ValueError(f"motion score {score} is not an SSIM; it must be at most 1")
    return min(NUM_BUCKETS - 1, math.floor((1.0 - max(0.0, score)) * NUM_BUCKETS))


def motion_id(bucket: int, mapping: Mapping[str, str]) -> int:
    """The number that a model's U-Net was trained to see for a bucket; `mapping` is the model directory's.

    Raises ValueError for a bucket outside 0..19 and for a mapping that this version does not know.
    """
    if isinstance(bucket, bool) or int(bucket) != bucket or not 0 <= bucket < NUM_BUCKETS:
        raise ValueError(
            f"motion_bucket {bucket} is outside 0..{NUM_BUCKETS - 1}; 0 is still, {NUM_BUCKETS - 1} the most"
        )
    kind = mapping.get("kind")
    if kind == UNIFORM_MOTION["kind"]:
        return int(bucket)
    if kind == OFFICIAL_MOTION["kind"]:  # the official demo's slider is 1..20 and enters as 100 - slider
        return 100 - (int(bucket) + 1)
    raise ValueError(
        f"the model's motion mapping is {kind!r}; this version knows {UNIFORM_MOTION['kind']!r} and "
        f"{OFFICIAL_MOTION['kind']!r}, so upgrade cinemo or mend cinemo.json"
    )
