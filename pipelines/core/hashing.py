"""8-byte hashes of texts: compact sets of ids, in sorted arrays, for jobs with millions of rows."""

import hashlib
from collections.abc import Iterable

import numpy as np


def hash64(texts: Iterable[str]) -> np.ndarray:
    """Hash each text to 8 bytes, uint64 (n,). 35 million take 280 MB.

    The probability that any two of 35 million distinct texts share a hash is 3e-5.
    """
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)


def is_among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each of the values is in `known`, which must be sorted: uint64 (n,), uint64 (m,) -> bool (n,)."""
    if not len(known):
        return np.zeros(len(values), bool)
    places = np.searchsorted(known, values)
    return known[np.minimum(places, len(known) - 1)] == values


class Seen:
    """Set of the uris seen so far, as 8-byte hashes."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # sorted arrays, each at most half as long as the one before

    def add(self, uris: list[str]) -> np.ndarray:
        """Add uris. Returns bool (len(uris),): True where a uri is in no earlier list, nor earlier in this one."""
        unique, first, which = np.unique(hash64(uris), return_index=True, return_inverse=True)
        fresh = np.ones(len(unique), bool)
        for run in self._runs:
            fresh &= ~is_among(unique, run)
        if fresh.any():
            self._merge(unique[fresh])
        return fresh[which] & (first[which] == np.arange(len(uris)))

    def _merge(self, run: np.ndarray) -> None:
        # Runs of doubling length: every hash is copied some twenty times, not once for every later chunk.
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")
        self._runs.append(run)


class Owners:
    """Map from names to owners, both as 8-byte hashes: 16 bytes a name, and a dictionary of the newest names."""

    def __init__(self, newest: int = 1 << 16) -> None:
        """newest: largest number of names in the dictionary, where a name takes a hundred times as many bytes."""
        self._newest: dict[int, int] = {}
        self._limit = newest
        self._runs: list[np.ndarray] = []  # (2, n), sorted by name; each run at most half as long as the one before

    def first(self, name: np.uint64, owner: np.uint64) -> int:
        """Return the owner of a name; if it has none yet, it gets this one."""
        for names, owners in self._runs:
            place = min(int(np.searchsorted(names, name)), len(names) - 1)
            if names[place] == name:
                return int(owners[place])
        found = self._newest.setdefault(int(name), int(owner))
        if len(self._newest) >= self._limit:
            self._merge()
        return found

    def _merge(self) -> None:
        run = np.array([list(self._newest.keys()), list(self._newest.values())], np.uint64)
        self._newest.clear()
        while self._runs and self._runs[-1].shape[1] < 2 * run.shape[1]:
            run = np.concatenate([self._runs.pop(), run], axis=1)
        self._runs.append(run[:, np.argsort(run[0])])
