"""The shape of each training step's batch: shapes occur in proportion to their weights, by (seed, step) alone."""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 256  # steps, in which each shape occurs as often as its share says, to within one step


class ShapeSchedule:
    """The shape of every step's batch. Each block of steps has every shape by its share, in a random order."""

    def __init__(self, weights: Sequence[float]) -> None:
        """weights: of each shape, not all 0. A shape's share is its weight divided by their sum."""
        self.shares = np.asarray(weights, np.float64) / np.sum(weights)
        self._block = functools.lru_cache(maxsize=2)(self._draw_block)
        self._before: dict[int, list[np.ndarray]] = {}  # seed -> for each block, the steps of each shape before it

    def at(self, seed: int, step: int) -> tuple[int, int]:
        """Find a step's shape: (number of the shape, how many earlier steps had it). Steps count from 0."""
        number, place = divmod(step, BLOCK)
        before = self._before.setdefault(seed, [np.zeros(len(self.shares), np.int64)])
        while len(before) <= number:
            counts = np.bincount(self._block(seed, len(before) - 1), minlength=len(self.shares))
            before.append(before[-1] + counts)
        block = self._block(seed, number)
        shape = int(block[place])
        return shape, int(before[number][shape] + np.count_nonzero(block[:place] == shape))

    def _draw_block(self, seed: int, number: int) -> np.ndarray:
        """Draw the numbers of the shapes of a block's steps, by systematic sampling: int64 (BLOCK,)."""
        random = np.random.Generator(np.random.PCG64([seed, number, len(self.shares), BLOCK]))
        points = (np.arange(BLOCK) + random.random()) / BLOCK
        last = np.flatnonzero(self.shares)[-1]  # a rounding error must not choose a shape without a share
        return random.permutation(np.minimum(np.searchsorted(np.cumsum(self.shares), points, side="right"), last))
