"""Count what a source holds: videos with and without a caption, and what was skipped.

A job passes an empty tally to the readers of its source, and prints it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MANY = 0.1  # share of videos without a caption above which a warning is printed


@dataclass
class Tally:
    """Counts of one pass over a source.

    A segment counts as a video, with or without a caption; segments: how many of these are segments.
    repeated: rows of a list that name a video or a segment again; the first row's caption is used.
    alternatives: rows with several captions, of which the first is used. unknown: files that are neither videos nor
    captions, by ending. notes: messages, each once.
    """

    captioned: int = 0
    uncaptioned: int = 0
    segments: int = 0
    faults: int = 0
    repeated: int = 0
    alternatives: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, row: Any, is_new: bool) -> None:
        """Count a row (rows.Row). A file in a folder that a list has named does not count as repeated."""
        if not is_new:
            self.repeated += row.listed
        elif row.fault is not None:
            self.faults += 1
        else:
            self.segments += row.segment is not None
            self.captioned += row.caption != ""
            self.uncaptioned += row.caption == ""

    def note(self, sentence: str) -> None:
        """Add a note, unless it is there already."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def pass_over(self, name: str) -> None:
        """Count a file of an unknown kind."""
        stem, dot, ending = name.rpartition(".")
        self.unknown[f".{ending.lower()}" if dot and stem else "(no ending)"] += 1

    def counts(self) -> dict[str, Any]:
        """Counts for a job's summary."""
        return {
            "with_caption": self.captioned,
            "without_caption": self.uncaptioned,
            "segments": self.segments,
            "rows_with_a_fault": self.faults,
            "rows_that_repeat_a_video": self.repeated,
            "rows_with_several_captions": self.alternatives,
            "files_of_unknown_kinds": dict(sorted(self.unknown.items())),
        }

    def warnings(self) -> Iterator[str]:
        """Yield notes and warnings to print before the work begins."""
        yield from (f"note: {sentence}" for sentence in self.notes)
        videos = self.captioned + self.uncaptioned
        if self.uncaptioned > MANY * videos:
            yield f"warning: {self.uncaptioned} of {videos} videos have no caption, and get the empty prompt"

    def lines(self) -> Iterator[str]:
        """Yield lines to print at the end of a job that reads videos."""
        yield _line(self.captioned, "videos with a caption")
        yield _line(self.uncaptioned, "videos without a caption")
        if self.segments:
            yield _line(self.segments, "of them are segments of videos")
        if self.faults:
            yield _line(self.faults, "rows with a fault, which are rejects")
        if self.repeated:
            yield _line(self.repeated, "rows left out: they repeat a video that an earlier row names")
        if self.alternatives:
            yield _line(self.alternatives, "rows with several captions, of which the first was taken")
        yield from self.lines_of_files()

    def lines_of_files(self) -> Iterator[str]:
        """Yield a line about the skipped files of unknown kinds, if there are any."""
        if count := self.unknown.total():
            kinds = ", ".join(f"{ending} {number}" for ending, number in self.unknown.most_common())
            what = "file of an unknown kind" if count == 1 else "files of unknown kinds"
            yield _line(count, f"{what} left out: {kinds}")


def _line(count: int, what: str) -> str:
    return f"{count:>10}  {what}"
