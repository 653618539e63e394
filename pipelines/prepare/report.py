"""Report on a prepared dataset: a table of counts, speeds, the bucket histogram, and a clip of each bucket."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cinemo.motion import NUM_BUCKETS
from cinemo.video import VideoError
from pipelines.core import plots
from pipelines.dataset import parts
from pipelines.prepare import clips

FEW = 0.01  # buckets with a smaller share of the clips are hardly learned


def table(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines to print at the end of a job: clips, and rejects by reason."""
    yield f"{counts['clips']:>10}  clips of {counts['videos']} videos"
    for reason, count in sorted(counts["rejects"].items(), key=lambda item: -item[1]):
        yield f"{count:>10}  rejected: {reason}"


def thin_buckets(histogram: Sequence[int]) -> str | None:
    """Warning that names the motion buckets with too few clips to be learned; None when all have enough."""
    few = [str(bucket) for bucket in range(NUM_BUCKETS) if histogram[bucket] < FEW * sum(histogram)]
    return f"warning: under {FEW:.0%} of the clips in motion buckets {', '.join(few)}" if few else None


def speeds(sums: Mapping[str, float], took: float) -> dict[str, float]:
    """Clips per second of the whole job, and of one busy process of each stage. Empty without new clips.

    sums: clips, and seconds by stage (decode_s, ...), of this run. took: its seconds.
    """
    new = sums.get("clips", 0)
    if not new:
        return {}
    stages = {name.removesuffix("_s"): value for name, value in sums.items() if name.endswith("_s") and value}
    return {"job": round(new / took, 3), **{name: round(new / value, 3) for name, value in stages.items()}}


def pictures(written: parts.Survey, num_frames: int, size: tuple[int, int], run: clips.Run) -> dict[str, bytes]:
    """Draw PNGs, by file name: the histogram of buckets and, if there are clips, a sheet with one of each bucket."""
    from cinemo.sheet import sheet_png

    found = {"bucket_histogram.png": plots.bars(written.buckets, "motion bucket", "clips")}
    rows = []
    for bucket, clip in sorted(written.examples.items()):
        # A clip that can no longer be read is not worth a failed job.
        with contextlib.suppress(VideoError):
            span = (clip["uri"], clip["start_frame"], clip["interval"], num_frames, size)
            frames, similar, *_ = run(clips.read_clip, *span)
            rows.append((f"bucket {bucket}, SSIM {similar.mean():.3f}", frames))
    if (sheet := sheet_png(rows)) is not None:
        found["bucket_sheet.png"] = sheet
    return found
