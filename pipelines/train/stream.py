"""Clips for training straight from videos: decoded, scored and encoded while the model trains, and never written.

One actor runs the dataflow of prepare/flow.py and hands out numbered clips to all workers. Clip n of a run is the same
whenever it is requested: slices of the list of videos come in a permutation by (seed, epoch), clips in the order of
their videos, without rejects. A cursor is the place of clip n in the videos, so that a resumed run decodes nothing
twice.
"""

import itertools
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.dataset import manifest, reader, records
from pipelines.prepare import flow
from pipelines.prepare.config import ExtractConfig

PREFETCH = 2  # batches that are ready before a worker requests them


class Cursor(NamedTuple):
    """Source of the next clip: epoch, place of the slice in its permutation, clips of that slice before it."""

    epoch: int = 0
    place: int = 0
    clips: int = 0


class Stream:
    """Actor that makes numbered clips, from a cursor on. Raises ValueError when a whole epoch yields no clip."""

    def __init__(
        self,
        config: ExtractConfig,
        made_with: dict[str, Any],
        files: dict[str, int],
        videos: tuple[np.ndarray, np.ndarray],
        most_held_out: int,
        batch: int,
        seed: int,
    ) -> None:
        """made_with: as in flow.extract. files: files of the manifest and their rows. batch: clips of a step.

        videos: sorted hashes of the uris of the videos to train on, and of those held out. most_held_out: largest
        number of clips made of the videos held out.
        """
        ray.data.DataContext.get_current().enable_progress_bars = False
        self.config, self.made_with, self.batch, self.seed = config, made_with, batch, seed
        (self.trained_on, self.left_out), self.most_held_out = videos, most_held_out
        self.validation: list[reader.Clip] | None = None
        self.slices = manifest.slices(files, smallest=1, wanted=4096)
        self.rejects: Counter[str] = Counter()
        self.ready: queue.Queue[Any] = queue.Queue()
        self.next = 0  # number of the clip that comes out of the queue next
        self.clips: dict[int, reader.Clip] = {}
        self.cursors: dict[int, Cursor] = {}  # of the same clips, and of the next one
        self.generation = 0  # number of `begin` calls: the thread of an earlier one ends when it sees another number

    def begin(self, number: int, cursor: Cursor) -> None:
        """Go to clip `number`, which is at the cursor. One worker calls this before any requests a clip."""
        if self.validation is None:  # before training clips, so that the two never wait for each other's processes
            self.validation = list(itertools.islice(self._held_out(), self.most_held_out))
        self.generation += 1
        self.next, self.clips, self.cursors = number, {}, {number: Cursor(*cursor)}
        self.ready = queue.Queue(maxsize=PREFETCH * self.batch)
        arguments = (self.generation, self.ready, Cursor(*cursor))
        threading.Thread(target=self._fill, args=arguments, daemon=True).start()

    def clip(self, number: int) -> reader.Clip:
        """Return clip `number`; a number below 0 is a clip held out. Only the newest two batches are kept.

        Raises RuntimeError for a clip that is gone, and before `begin`.
        """
        held_out = self._validation()
        if number < 0:
            return held_out[-1 - number]
        if number < self.next and number not in self.clips:
            raise RuntimeError(f"clip {number} of the stream is gone; {self.next} is next")
        while number not in self.clips:
            self._next()
        return self.clips[number]

    def held_out(self) -> int:
        """Count the clips held out. Raises RuntimeError before `begin`."""
        return len(self._validation())

    def _validation(self) -> list[reader.Clip]:
        # Ray starts a lost actor anew, which a worker that called nothing meanwhile does not notice. This error ends
        # the attempt, and the next one calls `begin`; without it the worker would wait for clips for ever.
        if self.validation is None or not self.generation:
            raise RuntimeError("the stream of clips was started anew; training goes on from its last checkpoint")
        return self.validation

    def cursor(self, number: int) -> Cursor:
        """Return the cursor of a clip; the number is at most one past the newest."""
        return self.cursors[number]

    def _next(self) -> None:
        item = self.ready.get()
        if isinstance(item, BaseException):
            raise item
        newest = self.next
        self.clips[newest], self.cursors[newest + 1] = item
        self.next += 1
        self.clips.pop(newest - 2 * self.batch, None)
        self.cursors.pop(newest - 2 * self.batch, None)

    def _fill(self, generation: int, ready: "queue.Queue[Any]", cursor: Cursor) -> None:
        """Put clips and cursors of epoch after epoch into the queue, in a thread, until `begin` is called again."""
        try:
            for item in self._clips(cursor):
                while True:
                    if generation != self.generation:
                        return
                    try:
                        ready.put(item, timeout=1.0)
                        break
                    except queue.Full:
                        continue
        except Exception as error:
            ready.put(error)

    def _held_out(self) -> Iterator[reader.Clip]:
        """Make the clips of the videos held out, in the order of the manifest."""
        if not len(self.left_out):
            return
        rows = self._rows(self.slices, self.trained_on)
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from (reader.clip_of_row(row) for row in records.iter_rows(batch) if not row["reason"])

    def _clips(self, cursor: Cursor) -> Iterator[tuple[reader.Clip, Cursor]]:
        """Make each clip and the cursor after it, without end."""
        while True:
            found_any = cursor != Cursor(cursor.epoch)
            for clip, after in self._epoch(cursor):
                found_any = True
                yield clip, after
            if not found_any:
                raise ValueError(f"no clip of {self.slices.num_rows} slices of videos is usable: {dict(self.rejects)}")
            cursor = Cursor(cursor.epoch + 1)

    def _epoch(self, cursor: Cursor) -> Iterator[tuple[reader.Clip, Cursor]]:
        order = np.random.Generator(np.random.PCG64([self.seed, cursor.epoch])).permutation(self.slices.num_rows)
        slices = self.slices.take(order[cursor.place :])
        rows = self._rows(slices, self.left_out)
        place, clips, uris = cursor.place, 0, self._uris(slices, 0)
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in records.iter_rows(batch):
                while records.name_of(row) not in uris:  # rows come in the order of the slices
                    place, clips = place + 1, 0
                    uris = self._uris(slices, place - cursor.place)
                if row["reason"]:
                    self.rejects[row["reason"]] += 1
                    continue
                clips += 1
                if place > cursor.place or clips > cursor.clips:
                    yield reader.clip_of_row(row), Cursor(cursor.epoch, place, clips)

    def _rows(self, slices: pa.Table, left_out: np.ndarray) -> "ray.data.Dataset":
        none = flow.NOTHING
        return flow.extract(self.config, self.made_with, slices, none, none, left_out, in_order=True)

    @staticmethod
    def _uris(slices: pa.Table, place: int) -> set[str]:
        (part,) = slices.slice(place, 1).to_pylist()
        return {records.name_of(video) for video in manifest.read_slice(**part)}


class StreamReader:
    """Clips of the actor, as a worker reads them. Implements reader.Clips."""

    can_be_read_ahead = False  # the actor itself makes clips ahead, and keeps those of two batches

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, number: int, cursor: Sequence[int] | None) -> None:
        """Go to clip `number`, at the cursor of a checkpoint. One worker calls this before any reads a clip."""
        ray.get(self.actor.begin.remote(number, cursor or Cursor()))

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Numbers of the clips of a step's whole batch, over all workers. The seed is that of the actor."""
        return list(range(step * total_batch, (step + 1) * total_batch))

    def left_out(self, total_batch: int) -> int:
        """Return 0: all clips of a stream have one shape (job.check_shapes)."""
        return 0

    def shape_index(self, number: int) -> int:
        """Return 0, the index of the only shape."""
        return 0

    def held_out(self, most: int) -> list[int]:
        """Numbers of the first clips held out, all below 0; after one worker called `begin`."""
        return [-1 - index for index in range(ray.get(self.actor.held_out.remote()))][:most]

    def cursor(self, number: int) -> Cursor:
        """Return what `begin` needs to go to clip `number`."""
        return ray.get(self.actor.cursor.remote(number))

    def __getitem__(self, number: int) -> reader.Clip:
        return ray.get(self.actor.clip.remote(number))
