"""Batches in which motion buckets have the shares that `bucket_weights` of dataset.json give them."""

from collections.abc import Sequence

import numpy as np

from pipelines.dataset.reader import Clip, ClipReader


class BalancedClips:
    """Clips of a dataset, drawn by the weights of their buckets instead of in epochs. Implements Clips."""

    can_be_read_ahead = True

    def __init__(self, clips: ClipReader, weights: Sequence[float]) -> None:
        """weights: of a clip of each bucket. Raises ValueError when no clip has a weight above 0."""
        self.clips = clips
        buckets = clips.buckets()
        self.order = np.argsort(buckets, kind="stable").astype(np.int32)  # positions, bucket by bucket
        self.counts = np.bincount(buckets, minlength=len(weights))
        weighed = self.counts * np.asarray(weights)
        if not weighed.sum() > 0:
            raise ValueError("--balance-buckets: no clip to train on has a bucket_weights above 0 in dataset.json")
        self.shares = weighed / weighed.sum()

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Positions of the clips of a step's whole batch, over all workers, from (seed, step) alone."""
        return balanced_positions(self.order, self.counts, self.shares, total_batch, seed, step)

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
