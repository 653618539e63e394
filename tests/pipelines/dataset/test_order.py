"""The order of clips in training, drawn or computed: each epoch takes every clip once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dataset.order import ALWAYS_DRAWN, DRAWN_UP_TO, EpochOrder


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 12), st.integers(0, 3), st.sampled_from([0, ALWAYS_DRAWN]))
def test_every_epoch_takes_every_clip_once(count: int, batch: int, seed: int, drawn_up_to: int) -> None:
    epochs, order = 3, EpochOrder(count, drawn_up_to)
    steps = -(-epochs * count // batch)
    taken = [number for step in range(steps) for number in order.batch(batch, seed, step)]
    for epoch in range(epochs):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_of_a_small_dataset_is_the_one_that_development_versions_drew() -> None:
    drawn = np.random.Generator(np.random.PCG64([7, 0])).permutation(DRAWN_UP_TO).tolist()
    assert EpochOrder(DRAWN_UP_TO).batch(DRAWN_UP_TO, 7, 0) == drawn
    assert EpochOrder(DRAWN_UP_TO + 1, ALWAYS_DRAWN).is_drawn
    assert not EpochOrder(DRAWN_UP_TO + 1).is_drawn


@pytest.mark.parametrize("count", [DRAWN_UP_TO + 1, 100_000, 262_144])
def test_a_computed_order_looks_drawn(count: int) -> None:
    epochs = [np.array(EpochOrder(count).batch(count, seed, step)) for seed, step in ((0, 0), (0, 1), (1, 0))]
    for number, one in enumerate(epochs):
        others = [np.arange(count), *(epochs[:number])]
        for other in others:  # two drawn orders would have a correlation of about 1 / sqrt(count)
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(count)
            assert (one == other).sum() < 10  # in drawn orders: Poisson with mean 1
        neighbours = np.corrcoef(one[1:], one[:-1])[0, 1]
        assert abs(neighbours) < 5 / np.sqrt(count)
        # The first 6,400 places hold numbers from everywhere: chi-squared test with 64 ranges of numbers.
        spread = np.bincount(one[:6400] * 64 // count, minlength=64)
        assert ((spread - 100) ** 2 / 100).sum() < 63 + 5 * np.sqrt(2 * 63)
