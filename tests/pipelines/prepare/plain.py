"""The reference for the prepare job: one process, one clip after another, no Ray.

For tests that compare with a dataset, or that only need one. The files are those of the job, by the job's own writers.
"""

from typing import Any

from pipelines import sources
from pipelines.core import storage
from pipelines.dataset import manifest, parts, records
from pipelines.prepare import clips, flow
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig


def prepare_plain(config: PrepareConfig) -> dict[str, Any]:
    """Write the dataset that `config` names; returns its description (dataset.json)."""
    job = prepare.resolve(config)
    config, sizes = job.config, flow.frame_sizes(job.config)
    encoder = clips.Encoder(config.model, job.identity, "cpu")
    tables = list(sources.iter_videos(config.input, config.uri_column, config.caption_column))
    manifest.write(tables, storage.join(config.output, "videos"))
    videos = [video for table in tables for video in table.to_pylist()]
    spans = [span for video in videos for span in clips.make_spans(video, config, sizes)]
    decoded = [clips.decode({"reason": None, **span}, config) for span in spans]
    encoded = [row if row["reason"] else encoder.encode(row) for row in decoded]
    rows = [row for one in encoded for row in records.iter_rows(records.row_table(one))]
    for first in range(0, len(rows), config.clips_per_file):
        parts.write(rows[first : first + config.clips_per_file], config.output, len(job.shapes) > 1)
    storage.put_json(storage.join(config.output, "settings.json"), job.identity)
    described = prepare.describe(job, parts.survey(config.output))
    storage.put_json(storage.join(config.output, "dataset.json"), described)
    return described
