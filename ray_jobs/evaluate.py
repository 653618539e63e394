"""`python ray_jobs/evaluate.py --dataset SOURCE --output URI [--model MODEL...]`: models on a dataset -> a report."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipelines.evaluate import job
from pipelines.evaluate.config import EvaluateConfig
from ray_jobs import common


def needs_cpus(config: EvaluateConfig) -> int:
    """A share of a CPU for each process that animates, a tenth to write."""
    return math.ceil(0.8 * (config.workers or 1) + 0.1)


def main() -> int:
    return common.main(EvaluateConfig, job.resolve, job.run, needs_cpus)


if __name__ == "__main__":
    sys.exit(main())
