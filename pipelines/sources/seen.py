"""Which uris were listed before, at 8 bytes each: 35 million videos in 280 MB.

Two different uris share a hash, and the second is lost, with a chance of n * n / 2**65: 1 in 30,000 for all of 35
million videos together.
"""

import hashlib

import numpy as np


class Seen:
    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # sorted, each less than half as long as the one before

    def add(self, uris: list[str]) -> np.ndarray:
        """Bool (len(uris),): which are here for the first time, in this list and in all before."""
        digests = b"".join(hashlib.blake2b(uri.encode(), digest_size=8).digest() for uri in uris)
        unique, first, which = np.unique(np.frombuffer(digests, np.uint64), return_index=True, return_inverse=True)
        fresh = np.ones(len(unique), bool)
        for run in self._runs:
            at = np.searchsorted(run, unique)
            fresh &= run[np.minimum(at, len(run) - 1)] != unique
        if fresh.any():
            self._merge(unique[fresh])
        return fresh[which] & (first[which] == np.arange(len(uris)))

    def _merge(self, run: np.ndarray) -> None:
        # Runs of doubling length: every hash is copied some twenty times, not once for every chunk that follows.
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")
        self._runs.append(run)
