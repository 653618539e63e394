"""Batches in which motion buckets have the shares that `bucket_weights` of dataset.json give them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.dataset.reader import Clip, ClipReader, weights_of_shapes
from pipelines.dataset.shape_order import ShapeSchedule


class Group(NamedTuple):
    """Clips of one shape. B: number of motion buckets."""

    order: np.ndarray  # int32 (n,): positions, bucket by bucket
    counts: np.ndarray  # int64 (B,): clips of each bucket
    shares: np.ndarray  # float64 (B,): of each bucket in a batch
    weight: float  # sum of the weights of the clips

    @staticmethod
    def of(positions: np.ndarray, buckets: np.ndarray, weights: Sequence[float]) -> "Group":
        """Order clips by bucket. positions, buckets: int (n,), of each clip. weights: of one clip of each bucket."""
        counts = np.bincount(buckets, minlength=len(weights))
        weighed = counts * np.asarray(weights)
        weight = float(weighed.sum())
        order = positions[np.argsort(buckets, kind="stable")].astype(np.int32)
        return Group(order, counts, weighed / weight if weight > 0 else weighed, weight)


class BalancedClips:
    """Clips of a dataset, drawn by the weights of their buckets instead of in epochs. Implements Clips."""

    can_be_read_ahead = True

    def __init__(self, clips: ClipReader, weights: Sequence[float]) -> None:
        """weights: of a clip of each bucket. Raises ValueError when no clip has a weight above 0."""
        self.clips = clips
        buckets = clips.buckets()
        self.groups = [Group.of(positions, buckets[positions], weights) for positions in clips.groups()]
        if not any(group.weight > 0 for group in self.groups):
            raise ValueError("--balance-buckets: no clip to train on has a bucket_weights above 0 in dataset.json")
        self._schedule = functools.lru_cache(maxsize=1)(self._schedule_of)

    def _schedule_of(self, total_batch: int) -> ShapeSchedule:
        weights = [group.weight for group in self.groups]
        return ShapeSchedule(weights_of_shapes(weights, total_batch, [len(group.order) for group in self.groups]))

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Positions of the clips of a step's whole batch, over all workers, from (seed, step) alone."""
        shape = self._schedule(total_batch).at(seed, step)[0] if len(self.groups) > 1 else 0
        group = self.groups[shape]
        return balanced_positions(group.order, group.counts, group.shares, total_batch, seed, step)

    def left_out(self, total_batch: int) -> int:
        """Count the clips of shapes that have fewer clips than a batch, and so are in none."""
        return self.clips.left_out(total_batch)

    def shape_index(self, number: int) -> int:
        """Index of the shape of clip `number`."""
        return self.clips.shape_index(number)

    def begin(self, number: int, cursor: Sequence[int] | None) -> None:
        """Do nothing: any clip can be read at any time."""
        self.clips.begin(number, cursor)

    def cursor(self, number: int) -> None:
        """Return None: a position is enough to read a clip."""
        self.clips.cursor(number)

    def held_out(self, most: int) -> list[int]:
        """Positions of the first clips that are held out, `most` at most."""
        return self.clips.held_out(most)

    def __getitem__(self, position: int) -> Clip:
        return self.clips[position]


def balanced_positions(
    order: np.ndarray, counts: np.ndarray, shares: np.ndarray, total_batch: int, seed: int, step: int
) -> list[int]:
    """Draw the positions of a step's batch by systematic sampling: each bucket gets its share to within one clip.

    order: positions sorted by bucket. counts, shares: clips of each bucket, and its share of a batch (sum 1). The clips
    of a bucket are drawn at random, and none twice in a step unless the bucket has fewer than its share.
    """
    random = np.random.Generator(np.random.PCG64([seed, step, len(order)]))
    ends = np.cumsum(shares) * total_batch
    ends[np.flatnonzero(shares)[-1] :] = total_batch  # not a rounding error below it
    taken = np.diff(np.ceil(ends - random.random()), prepend=0.0).astype(int)
    starts = np.cumsum(counts) - counts
    chosen = [
        order[start + random.choice(count, size, replace=size > count)]
        for start, count, size in zip(starts, counts, taken, strict=True)
        if size
    ]
    return random.permutation(np.concatenate(chosen)).tolist()
