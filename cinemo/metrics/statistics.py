"""Statistics of sets: Frechet distance, inception score, motion fidelity, and confidence intervals.

Sets are arrays of numbers with one row per item.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

CONFIDENCE = 0.95


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Frechet distance of two sets of features (n, d), seen as Gaussians: FID with Inception's, FVD with I3D's.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with sample covariances (Dowson and Landau, 1982; Heusel et al., 2017).
    The last trace is computed as the sum of the singular values of A1 A2', where S = A'A, which avoids the square root
    of a possibly singular matrix. float64. Raises ValueError for fewer than two rows, or features of different width.
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
    """Factor A of the sample covariance A'A, with at most d rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    if len(features) <= features.shape[1]:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def frechet_at_infinity(real: np.ndarray, generated: np.ndarray, seed: int = 0, points: int = 6) -> float:
    """Extrapolate the Frechet distance to infinitely many items: its bias is linear in 1 / n.

    A line is fitted to the distances of subsets of n/2 to n items, and read at 1/n = 0 (Chong and Forsyth, 2020).
    Raises ValueError for fewer than 8 items.
    """
    count = min(len(real), len(generated))
    if count < 8:
        raise ValueError(f"the bias of a Frechet distance needs at least 8 items, got {count}")
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.linspace(count // 2, count, points).astype(int))
    distances = [
        frechet_distance(real[rng.permutation(len(real))[:n]], generated[rng.permutation(len(generated))[:n]])
        for n in sizes
    ]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Inception score: mean and standard deviation, over splits, of exp(mean KL divergence of rows from the mean row).

    probabilities: (n, classes), rows that sum to 1 (Salimans et al., 2016; C3D's over UCF-101's classes for videos,
    Saito et al., 2017). As there, the deviation is the population's. Raises ValueError for fewer rows than splits.
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
    """Agreement of requested and measured motion buckets."""

    spearman: float  # rank correlation of requested and measured bucket
    error: float  # mean absolute difference, in buckets
    bias: float  # mean of measured minus requested


def motion_fidelity(requested: Sequence[int], measured: Sequence[float]) -> MotionFidelity:
    """Compare requested with measured motion buckets. Spearman is NaN if all requests, or all measurements, are equal.

    Raises ValueError for fewer than 3 clips.
    """
    expected, actual = np.asarray(requested), np.asarray(measured, np.float64)
    if len(expected) < 3 or len(expected) != len(actual):
        raise ValueError(
            f"motion fidelity needs at least 3 clips, got {len(expected)} requests and {len(actual)} clips"
        )
    varies = len(set(expected.tolist())) > 1 and len(set(actual.tolist())) > 1
    return MotionFidelity(
        float(spearmanr(expected, actual).statistic) if varies else float("nan"),
        float(np.abs(actual - expected).mean()),
        float((actual - expected).mean()),
    )


def bootstrap(
    count: int,
    statistic: Callable[[np.ndarray], float],
    rounds: int = 1000,
    seed: int = 0,
    around: float | None = None,
) -> tuple[float, float]:
    """95 % confidence interval by the percentile bootstrap (Efron, 1979).

    count: number of items. statistic: function of a resample's indices (count,), drawn with replacement. Resamples with
    the value NaN are left out; if all are, the interval is (NaN, NaN). around: the statistic of all items, if
    its bias depends on how many items differ. A resample repeats items, which adds to the bias, so the values are
    shifted until their mean is `around`.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(count, size=count)) for _ in range(rounds)])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    values = values if around is None else values + (around - values.mean())
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
