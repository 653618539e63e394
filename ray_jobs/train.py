"""`python ray_jobs/train.py --dataset URI --output URI [--preset tiny|base] [--zero-stage 0..3]`: dataset -> model."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipelines.train import data, job
from pipelines.train.config import TrainConfig
from ray_jobs import common


def needs_cpus(config: TrainConfig) -> int:
    """CPUs that a run needs at once: one for each worker, and one more to make clips of videos."""
    return config.workers[0] + data.is_stream(config.dataset)


def main() -> int:
    return common.main(TrainConfig, job.resolve, job.run, needs_cpus)


if __name__ == "__main__":
    sys.exit(main())
