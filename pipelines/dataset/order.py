"""The order in which training takes a dataset's clips: each epoch is a permutation of all, by (seed, epoch) alone.

numpy draws the whole permutation of a small dataset. That of ten million clips would take 0.6 s and 40 MB in every
worker, so permutations of large datasets are computed clip by clip: a Feistel network permutes the numbers
below a power of four, and is applied again to results that are too large (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002).
"""

import functools

import numpy as np

DRAWN_UP_TO = 1 << 16  # clips; the permutations of more are computed
ALWAYS_DRAWN = 1 << 62  # takes the place of DRAWN_UP_TO in runs that began before orders were computed
ROUNDS = 8


class EpochOrder:
    """Permutations of the numbers 0..count-1, one for each epoch."""

    def __init__(self, count: int, drawn_up_to: int = DRAWN_UP_TO) -> None:
        """drawn_up_to: largest count whose permutations are drawn."""
        self.count, self.is_drawn = count, count <= drawn_up_to
        self.half_bits = max(1, -(-(count - 1).bit_length() // 2))  # bits of each half of the Feistel network
        self._draw = functools.lru_cache(maxsize=2)(self._permutation)  # two: a batch may extend into the next epoch

    def batch(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Numbers of one step's whole batch, over all workers. Steps count from 0."""
        epochs, places = np.divmod(np.arange(step * total_batch, (step + 1) * total_batch), self.count)
        parts = [self._take(seed, int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)]
        return np.concatenate(parts).tolist()

    def _take(self, seed: int, epoch: int, places: np.ndarray) -> np.ndarray:
        """Numbers at these places of an epoch: int (n,)."""
        if self.is_drawn:
            return self._draw(seed, epoch)[places]
        keys = np.random.Generator(np.random.PCG64([seed, epoch])).integers(0, 1 << 64, ROUNDS, np.uint64)
        numbers = self._encrypt(places.astype(np.uint64), keys)
        while (too_large := numbers >= self.count).any():  # ends, because the places are below count
            numbers[too_large] = self._encrypt(numbers[too_large], keys)
        return numbers

    def _permutation(self, seed: int, epoch: int) -> np.ndarray:
        # Converted to int32 (40 MB for ten million clips) only afterwards, because numpy shuffles int64 faster.
        return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(self.count).astype(np.int32)

    def _encrypt(self, numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Permute the numbers below 4 ** half_bits: uint64 (n,). keys: uint64 (ROUNDS,)."""
        bits, mask = np.uint64(self.half_bits), np.uint64((1 << self.half_bits) - 1)
        left, right = numbers >> bits, numbers & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << bits) | right


def _mix(words: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit words with the finalizer of MurmurHash3: uint64 (n,)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        words = (words ^ (words >> np.uint64(33))) * np.uint64(factor)
    return words ^ (words >> np.uint64(33))
