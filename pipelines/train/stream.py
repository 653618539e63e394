"""Clips for training straight from videos: decoded, scored and encoded while the model trains, and never written.

One actor runs the dataflow of prepare/flow.py and hands out numbered clips to all workers. Clip n of a run is the same
whenever it is asked for: videos come in a permutation of their slices by (seed, epoch), clips in the order of their
videos, rejects left out. A cursor says where clip n comes from, so that a resumed run decodes nothing twice. Knows Ray
and rows. Knows nothing of models in training.
"""

import itertools
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data

from pipelines.dataset import manifest, reader, records
from pipelines.prepare import flow
from pipelines.prepare.config import ExtractConfig

AHEAD = 2  # batches that are ready before they are asked for


class Cursor(NamedTuple):
    """Where the next clip comes from: epoch, place of the slice in its permutation, clips of that slice before it."""

    epoch: int = 0
    place: int = 0
    clips: int = 0


class Stream:
    """The actor: numbered clips, from a cursor on. Raises ValueError when a whole epoch yields no clip."""

    def __init__(
        self,
        config: ExtractConfig,
        files: dict[str, int],
        videos: tuple[np.ndarray, np.ndarray],
        most_held_out: int,
        batch: int,
        seed: int,
    ) -> None:
        """files: those of the manifest. videos: sorted hashes of the uris of those to train on, and of those held out.

        most_held_out: clips that are made of the latter. batch: clips of a step.
        """
        ray.data.DataContext.get_current().enable_progress_bars = False
        self.config, self.batch, self.seed = config, batch, seed
        (self.trained_on, self.left_out), self.most_held_out = videos, most_held_out
        self.validation: list[reader.Clip] | None = None
        self.slices = manifest.slices(files, smallest=1, wanted=4096)
        self.rejects: Counter[str] = Counter()
        self.ready: queue.Queue[Any] = queue.Queue()
        self.next = 0  # number of the clip that comes out of the queue next
        self.clips: dict[int, reader.Clip] = {}
        self.cursors: dict[int, Cursor] = {}  # of the same clips, and of the next one
        self.generation = 0  # threads of an earlier beginning end when they see another one

    def begin(self, number: int, cursor: Cursor) -> None:
        """Go to clip `number`, which is at the cursor. One worker calls it before any asks for a clip."""
        if self.validation is None:  # first, so that the two never wait for each other's processes
            self.validation = list(itertools.islice(self._held_out(), self.most_held_out))
        self.generation += 1
        self.next, self.clips, self.cursors = number, {}, {number: Cursor(*cursor)}
        self.ready = queue.Queue(maxsize=AHEAD * self.batch)
        arguments = (self.generation, self.ready, Cursor(*cursor))
        threading.Thread(target=self._fill, args=arguments, daemon=True).start()

    def clip(self, number: int) -> reader.Clip:
        """Clip `number`; those of more than two batches before the newest are forgotten. Below 0: a clip held out."""
        if number < 0 and self.validation is not None:
            return self.validation[-1 - number]
        while number not in self.clips:
            self._next()
        return self.clips[number]

    def held_out(self) -> int:
        """How many clips are held out; after `begin`."""
        return len(self.validation or [])

    def cursor(self, number: int) -> Cursor:
        """Where clip `number` comes from; the number is at most one past the newest."""
        return self.cursors[number]

    def _next(self) -> None:
        found = self.ready.get()
        if isinstance(found, BaseException):
            raise found
        newest = self.next
        self.clips[newest], self.cursors[newest + 1] = found
        self.next += 1
        self.clips.pop(newest - 2 * self.batch, None)
        self.cursors.pop(newest - 2 * self.batch, None)

    def _fill(self, generation: int, ready: "queue.Queue[Any]", cursor: Cursor) -> None:
        """The thread: rows of epoch after epoch into the queue, until another beginning."""
        try:
            for found in self._clips(cursor):
                while True:
                    if generation != self.generation:
                        return
                    try:
                        ready.put(found, timeout=1.0)
                        break
                    except queue.Full:
                        continue
        except Exception as error:
            ready.put(error)

    def _held_out(self) -> Iterator[reader.Clip]:
        """Clips of the videos held out, in the order of the manifest."""
        if not len(self.left_out):
            return
        rows = flow.extract(self.config, self.slices, np.empty(0, np.uint64), self.trained_on, in_order=True)
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from (reader.clip_of_row(row) for row in records.iter_rows(batch) if not row["reason"])

    def _clips(self, cursor: Cursor) -> Iterator[tuple[reader.Clip, Cursor]]:
        """Each clip and the cursor after it, for ever."""
        while True:
            some = cursor != Cursor(cursor.epoch)
            for clip, after in self._epoch(cursor):
                some = True
                yield clip, after
            if not some:
                raise ValueError(f"no clip of {self.slices.num_rows} slices of videos is usable: {dict(self.rejects)}")
            cursor = Cursor(cursor.epoch + 1)

    def _epoch(self, cursor: Cursor) -> Iterator[tuple[reader.Clip, Cursor]]:
        order = np.random.Generator(np.random.PCG64([self.seed, cursor.epoch])).permutation(self.slices.num_rows)
        slices = self.slices.take(order[cursor.place :])
        nothing = np.empty(0, np.uint64)
        rows = flow.extract(self.config, slices, nothing, self.left_out, in_order=True)
        place, clips, uris = cursor.place, 0, self._uris(slices, 0)
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in records.iter_rows(batch):
                while row["uri"] not in uris:  # rows come in the order of the slices
                    place, clips = place + 1, 0
                    uris = self._uris(slices, place - cursor.place)
                if row["reason"]:
                    self.rejects[row["reason"]] += 1
                    continue
                clips += 1
                if place > cursor.place or clips > cursor.clips:
                    yield reader.clip_of_row(row), Cursor(cursor.epoch, place, clips)

    @staticmethod
    def _uris(slices: pa.Table, place: int) -> set[str]:
        (part,) = slices.slice(place, 1).to_pylist()
        return {str(video["uri"]) for video in manifest.read_slice(**part)}


class StreamReader:
    """A worker's view of the actor, with what reader.ClipReader offers."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def begin(self, number: int, cursor: Any) -> None:
        """Go to clip `number`, at the cursor that a checkpoint holds; for one worker to call."""
        ray.get(self.actor.begin.remote(number, cursor or Cursor()))

    def positions(self, total_batch: int, seed: int, step: int) -> list[int]:
        """Numbers of the clips of a step's whole batch, over all workers; the seed is the stream's own."""
        return list(range(step * total_batch, (step + 1) * total_batch))

    def held_out(self, most: int) -> list[int]:
        """Numbers of the first clips that are held out, all below 0; after one worker called `begin`."""
        return [-1 - place for place in range(ray.get(self.actor.held_out.remote()))][:most]

    def cursor(self, number: int) -> Cursor:
        """What `begin` needs to go to clip `number`."""
        return ray.get(self.actor.cursor.remote(number))

    def __getitem__(self, number: int) -> reader.Clip:
        return ray.get(self.actor.clip.remote(number))
