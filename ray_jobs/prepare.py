"""`python ray_jobs/prepare.py --input SOURCE --output URI [--model MODEL]`: videos -> a training dataset."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipelines.prepare import job
from pipelines.prepare.config import PrepareConfig
from ray_jobs import common


def needs_cpus(config: PrepareConfig) -> int:
    """A share of a CPU for each encoder, half of one to decode, a tenth to write."""
    return math.ceil(0.4 * (config.encoders or 1) + 0.6)


def main() -> int:
    return common.main(PrepareConfig, job.resolve, job.run, needs_cpus)


if __name__ == "__main__":
    sys.exit(main())
