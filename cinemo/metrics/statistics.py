"""Comparing sets: Frechet distance, inception score, motion fidelity, and how sure a figure is.

Knows arrays of numbers, one row an item. Knows nothing of pixels or of the networks that the numbers come from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

CONFIDENCE = 0.95


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Frechet distance of two sets of features (n, d), seen as Gaussians: FID with Inception's, FVD with I3D's.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with sample covariances (Dowson and Landau, 1982; Heusel et al., 2017).
    The last trace is the sum of the singular values of A1 A2', where S = A'A: no square root of a matrix that may be
    singular. float64. Raises ValueError for fewer than two rows, or features of different width.
    """
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"a Frechet distance needs at least 2 {name} items, got features {features.shape}")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} numbers, generated ones {generated.shape[1]}; use one network for both"
        )
    first, second = (_factor(features) for features in (real, generated))
    mean = float(np.sum((real.mean(axis=0) - generated.mean(axis=0)) ** 2))
    shared = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    return max(0.0, mean + float(np.sum(first**2) + np.sum(second**2)) - 2 * shared)


def _factor(features: np.ndarray) -> np.ndarray:
    """A with A'A the sample covariance: at most d rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def frechet_at_infinity(real: np.ndarray, generated: np.ndarray, seed: int = 0, points: int = 6) -> float:
    """The Frechet distance that infinitely many items would have, by its bias, which is linear in 1 / n.

    A line through the distances of subsets of n/2 to n items, at 1/n = 0 (Chong and Forsyth, 2020). Raises ValueError
    for fewer than 8 items.
    """
    count = min(len(real), len(generated))
    if count < 8:
        raise ValueError(f"the bias of a Frechet distance needs at least 8 items, got {count}")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(count // 2, count, points).astype(int))
    found = [
        frechet_distance(real[rng.permutation(len(real))[:n]], generated[rng.permutation(len(generated))[:n]])
        for n in sizes
    ]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of each row from the mean row, by splits: their mean and deviation.

    probabilities: (n, classes), rows that sum to 1 (Salimans et al., 2016; C3D's over UCF-101's classes for videos,
    Saito et al., 2017). The deviation is the population's, as there. Raises ValueError for fewer rows than splits.
    """
    values = np.asarray(probabilities, np.float64)
    if values.ndim != 2 or len(values) < splits:
        raise ValueError(f"an inception score of {splits} splits needs at least {splits} items, got {len(values)}")
    if not np.allclose(values.sum(axis=1), 1, atol=1e-3):
        raise ValueError("an inception score needs probabilities: rows that sum to 1; apply softmax first")
    scores = []
    for part in np.array_split(values, splits):
        with np.errstate(divide="ignore", invalid="ignore"):
            divergence = np.where(part > 0, part * (np.log(part) - np.log(part.mean(axis=0))), 0.0)
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


class MotionFidelity(NamedTuple):
    """How well the motion that was asked for is the motion that is there."""

    spearman: float  # rank correlation of requested and measured bucket
    error: float  # mean absolute difference, in buckets
    bias: float  # mean of measured minus requested
    by_bucket: dict[int, tuple[float, int]]  # requested bucket -> mean measured one, and how many clips


def motion_fidelity(requested: Sequence[int], measured: Sequence[float]) -> MotionFidelity:
    """Requested against measured motion buckets. Spearman is NaN where all requests, or all measurements, are one.

    Raises ValueError for fewer than 3 clips.
    """
    asked, found = np.asarray(requested), np.asarray(measured, np.float64)
    if len(asked) < 3 or len(asked) != len(found):
        raise ValueError(f"motion fidelity needs at least 3 clips, got {len(asked)} requests and {len(found)} clips")
    varies = len(set(asked.tolist())) > 1 and len(set(found.tolist())) > 1
    table = {int(b): (float(found[asked == b].mean()), int((asked == b).sum())) for b in np.unique(asked)}
    return MotionFidelity(
        float(spearmanr(asked, found).statistic) if varies else float("nan"),
        float(np.abs(found - asked).mean()),
        float((found - asked).mean()),
        table,
    )


def bootstrap(
    count: int, statistic: Callable[[np.ndarray], float], rounds: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A 95 % confidence interval by the percentile bootstrap (Efron, 1979).

    count: items. statistic: of the indices of a resample (count,), drawn with repetition. A resample without a value
    (NaN) is left out; where all are, so is the interval: (NaN, NaN).
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(count, size=count)) for _ in range(rounds)])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
