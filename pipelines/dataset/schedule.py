"""Which shape the batch of each training step has: each by its share, from (seed, step) alone."""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 256  # steps in which each shape has its share to within one step


class ShapeSchedule:
    """The shape of every step's batch. In a block of steps their order is random, and their numbers are the shares."""

    def __init__(self, weights: Sequence[float]) -> None:
        """weights: of each shape, not all 0; a share is a part of their sum."""
        self.shares = np.asarray(weights, np.float64) / np.sum(weights)
        self._block = functools.lru_cache(maxsize=2)(self._draw_block)
        self._before: dict[int, list[np.ndarray]] = {}  # seed -> steps of each shape before each block

    def at(self, seed: int, step: int) -> tuple[int, int]:
        """The shape of a step, and how many earlier steps had it; steps count from 0."""
        number, place = divmod(step, BLOCK)
        before = self._before.setdefault(seed, [np.zeros(len(self.shares), np.int64)])
        while len(before) <= number:
            counts = np.bincount(self._block(seed, len(before) - 1), minlength=len(self.shares))
            before.append(before[-1] + counts)
        block = self._block(seed, number)
        shape = int(block[place])
        return shape, int(before[number][shape] + np.count_nonzero(block[:place] == shape))

    def _draw_block(self, seed: int, number: int) -> np.ndarray:
        """Shapes of the steps of a block, by systematic sampling: int64 (BLOCK,)."""
        random = np.random.Generator(np.random.PCG64([seed, number, len(self.shares), BLOCK]))
        points = (np.arange(BLOCK) + random.random()) / BLOCK
        last = np.flatnonzero(self.shares)[-1]  # a rounding error must not choose a shape without a share
        return random.permutation(np.minimum(np.searchsorted(np.cumsum(self.shares), points, side="right"), last))
