"""The reference for the evaluate job: one process, one case after another, no Ray."""

import json
from typing import Any

import pyarrow as pa

from pipelines.evaluate import job as evaluate
from pipelines.evaluate import rows
from pipelines.evaluate.config import EvaluateConfig


def evaluate_plain(config: EvaluateConfig) -> dict[str, Any]:
    """Write the rows and the report that `config` asks for; returns the job's summary."""
    job = evaluate.resolve(config)
    config = job.config
    for model, cases in evaluate.plan(job).items():
        measure = evaluate.Evaluator(config, model, job.size, job.loras)
        for row in measure(pa.table({"case": [json.dumps(case) for case in cases]})):
            rows.write(row.to_pylist(), config.output)
    return evaluate.run(job)  # finds every row done, so it starts no dataflow and only writes the report
