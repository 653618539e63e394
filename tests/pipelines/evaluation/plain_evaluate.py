"""The reference for the evaluate job: one process, one case after another, no Ray."""

import json
from typing import Any

import pyarrow as pa

from pipelines import evaluate
from pipelines.evaluation import config, rows


def evaluate_plain(settings: evaluate.EvaluateConfig) -> dict[str, Any]:
    """Write the rows and the report that `settings` ask for; returns the job's summary."""
    settings = config.placed(settings)
    evaluate.check(settings)
    size = config.frame_size(settings)
    for model, cases in evaluate.plan(settings).items():
        measure = evaluate.Evaluator(settings, model, size)
        for row in measure(pa.table({"case": [json.dumps(case) for case in cases]})):
            rows.write(row.to_pylist(), settings.output)
    return evaluate.run(settings)  # finds every row done, so it starts no dataflow and only writes the report
