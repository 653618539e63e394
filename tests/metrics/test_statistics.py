"""Statistics against independent implementations, on the same features."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import norm

from cinemo.metrics import statistics


def features(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + shift


def by_scipy(real: np.ndarray, generated: np.ndarray) -> float:
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = sqrtm(first @ second).real
    mean = real.mean(axis=0) - generated.mean(axis=0)
    return float(mean @ mean + np.trace(first + second - 2 * root))


def test_the_frechet_distance_is_scipy_s_and_torchmetrics_s() -> None:
    from torchmetrics.image.fid import _compute_fid

    real, generated = features(200, 24, 0), features(150, 24, 1, shift=0.5)
    found = statistics.frechet_distance(real, generated)
    assert found == pytest.approx(by_scipy(real, generated), rel=1e-4)
    moments = [
        torch.from_numpy(m) for f in (real, generated) for m in (f.mean(axis=0), np.cov(f, rowvar=False))
    ]  # fmt: skip
    assert found == pytest.approx(float(_compute_fid(*moments)), rel=1e-4)


def test_fewer_items_than_features_are_no_trouble() -> None:
    """The covariances are then singular, and their product's root is where implementations differ."""
    from torchmetrics.image.fid import _compute_fid

    real, generated = features(20, 64, 0), features(12, 64, 1, shift=0.5)
    moments = [torch.from_numpy(m) for f in (real, generated) for m in (f.mean(axis=0), np.cov(f, rowvar=False))]
    found = statistics.frechet_distance(real, generated)
    assert found == pytest.approx(float(_compute_fid(*moments)), rel=1e-4)
    assert statistics.frechet_distance(real, real) == pytest.approx(0, abs=1e-6 * found)


def test_the_bias_of_few_items_is_taken_out() -> None:
    real, generated = features(60, 16, 3), features(60, 16, 3)
    rng = np.random.default_rng(0)
    mixed = real[rng.permutation(60)[:60]]
    assert statistics.frechet_at_infinity(mixed, generated) < statistics.frechet_distance(real[:30], generated[30:])
    many = np.random.default_rng(5).standard_normal((400, 16)), np.random.default_rng(6).standard_normal((400, 16))
    plain, corrected = statistics.frechet_distance(*many), statistics.frechet_at_infinity(*many)
    assert abs(corrected) < plain / 3  # the truth is 0


def test_the_inception_score_is_torchmetrics_s() -> None:
    from torchmetrics.image.inception import InceptionScore

    class Given(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((90, 101)) * 2)
    metric = InceptionScore(feature=Given(), splits=1)
    metric.features.append(logits)
    expected, _ = metric.compute()
    found, spread = statistics.inception_score(logits.softmax(-1).numpy(), splits=1)
    assert found == pytest.approx(float(expected), rel=1e-4)
    assert spread == 0
    certain = np.eye(10)[np.arange(100) % 10]
    assert statistics.inception_score(certain) == pytest.approx((10, 0))


def test_motion_fidelity_of_a_perfect_a_compressed_and_a_deaf_model() -> None:
    asked = [0, 5, 10, 15, 19] * 4
    assert statistics.motion_fidelity(asked, asked)[:3] == (pytest.approx(1), 0, 0)
    halved = statistics.motion_fidelity(asked, [b / 2 for b in asked])
    assert halved.spearman == pytest.approx(1)
    assert halved.bias == pytest.approx(-np.mean(asked) / 2)
    assert np.isnan(statistics.motion_fidelity(asked, [7] * len(asked)).spearman)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, high = statistics.bootstrap(len(values), lambda rows: float(values[rows].mean()))
    half = norm.ppf(0.975) * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert np.isnan(statistics.bootstrap(4, lambda rows: float("nan"))[0])


def test_the_interval_of_a_distance_between_sets_holds_its_value() -> None:
    features = np.random.default_rng(0).standard_normal((40, 60))
    value = statistics.frechet_distance(features, features[:20])

    def of(places: np.ndarray) -> float:
        return statistics.frechet_distance(features, features[:20][places])

    assert statistics.bootstrap(20, of, 20)[0] > value  # resamples repeat items
    low, high = statistics.bootstrap(20, of, 20, around=value)
    assert low < value < high


def test_too_few_items_are_refused_and_counted() -> None:
    with pytest.raises(ValueError, match=r"at least 2 generated items, got features \(1, 4\)"):
        statistics.frechet_distance(np.zeros((3, 4)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="real features have 4 numbers, generated ones 5"):
        statistics.frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="at least 10 items, got 9"):
        statistics.inception_score(np.eye(9))
    with pytest.raises(ValueError, match="rows that sum to 1"):
        statistics.inception_score(np.ones((10, 3)))
    with pytest.raises(ValueError, match="at least 8 items, got 7"):
        statistics.frechet_at_infinity(np.zeros((7, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="at least 3 clips, got 2"):
        statistics.motion_fidelity([1, 2], [1, 2])
