"""Cases -> rows of numbers, on Ray Data: one model after another, each by a pool of processes.

This is the dataflow and its resources; measure.py handles one case.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.evaluate import rows
from pipelines.evaluate.config import REAL, EvaluateConfig, Variant

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    import ray.data

ROWS_PER_FILE = 8  # at most this many are redone after a kill, besides those in progress


class Evaluator:
    """One process of one model: cases under their variants -> rows, one at a time."""

    def __init__(self, config: EvaluateConfig, model: str, size: tuple[int, int]) -> None:
        from pipelines.evaluate import animators, measure
        from pipelines.prepare import clips

        device = "cuda" if config.gpus else "cpu"
        self.measure = measure.measure
        self.config, self.size = config, size
        self.animate = None if model == REAL else animators.load(model, config, device)
        self.nets = measure.Networks(config, device)
        self.run = clips.in_sandbox(config.clip_timeout)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Cases as JSON -> a table of schema ROW for each."""
        for text in block["case"].to_pylist():
            case = json.loads(text)
            variant = Variant(*case["variant"])
            row = self.measure(case, variant, self.animate, self.nets, self.config, self.size, self.run)
            yield pa.Table.from_pylist([{name: row.get(name) for name in rows.ROW.names}], schema=rows.ROW)


def write_block(block: pa.Table, output: str) -> pa.Table:
    """Write rows to files; returns one row: the numbers of rows and of rejects."""
    rows.write(block.to_pylist(), output)
    return pa.table({"rows": [block.num_rows], "rejects": [block.num_rows - block["reason"].null_count]})


def build(config: EvaluateConfig, model: str, cases: list[dict[str, Any]], size: tuple[int, int]) -> "ray.data.Dataset":
    """Build the lazy dataflow of one model. Models run one after another: two large ones may not fit at once."""
    import ray.data

    cpus = int(ray.cluster_resources().get("CPU", 1))
    workers = config.gpus or config.workers or cpus

    # 1. A few cases per block, so that a slow case does not delay many others.
    table = pa.table({"case": [json.dumps(case) for case in cases]})
    step = max(1, min(4, len(cases) // (2 * workers)))
    waiting = ray.data.from_arrow([table.slice(first, step) for first in range(0, len(cases), step)])

    # 2. Read, animate and measure in one process, because frames are large; a fixed pool, because models load slowly.
    measured = waiting.map_batches(
        Evaluator,
        fn_constructor_args=(config, model, size),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, -(-len(cases) // step))),
        num_gpus=1 if config.gpus else 0,
        num_cpus=0.8,
    )

    # 3. Write files of a few rows. One task is enough: it mostly waits for storage.
    return measured.map_batches(
        write_block,
        fn_args=(config.output,),
        batch_size=ROWS_PER_FILE,
        batch_format="pyarrow",
        compute=ray.data.TaskPoolStrategy(size=1),
        num_cpus=0.1,
    )
