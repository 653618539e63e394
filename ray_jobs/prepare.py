"""`python ray_jobs/prepare.py --input SOURCE --output URI [--model MODEL]`: videos -> a training dataset."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipelines import prepare
from ray_jobs import common


def needs_cpus(config: prepare.PrepareConfig) -> int:
    """One CPU for each encoder, one to decode, one to write."""
    return (config.gpus or config.encoders) + 2


if __name__ == "__main__":
    sys.exit(common.main(prepare.PrepareConfig, prepare.check, prepare.run, needs_cpus))
