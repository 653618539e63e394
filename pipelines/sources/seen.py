"""A set of the uris listed so far, at 8 bytes each (hashing.hash64): 35 million videos take 280 MB."""

import numpy as np

from pipelines.core import hashing


class Seen:
    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # sorted arrays, each at most half as long as the one before

    def add(self, uris: list[str]) -> np.ndarray:
        """Add uris. Returns bool (len(uris),): which appear for the first time, in this list and all before."""
        unique, first, which = np.unique(hashing.hash64(uris), return_index=True, return_inverse=True)
        fresh = np.ones(len(unique), bool)
        for run in self._runs:
            fresh &= ~hashing.is_among(unique, run)
        if fresh.any():
            self._merge(unique[fresh])
        return fresh[which] & (first[which] == np.arange(len(uris)))

    def _merge(self, run: np.ndarray) -> None:
        # Runs of doubling length: every hash is copied some twenty times, not once for every later chunk.
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")
        self._runs.append(run)
