"""`python ray_jobs/animate.py --catalog SOURCE --output URI [--model MODEL]`: a catalog of images -> videos."""

import math
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipelines.animate import job
from pipelines.animate.config import AnimateConfig
from ray_jobs import common


def resolve(config: AnimateConfig) -> job.Job:
    """As the pipeline does; and on this machine alone, a GPU that is not there would be waited for for ever."""
    resolved = job.resolve(config)
    if config.num_gpus and "RAY_ADDRESS" not in os.environ:
        import torch

        if not torch.cuda.is_available():
            raise ValueError(
                f"--num-gpus {config.num_gpus:g}: torch sees no GPU here; leave it out, or set RAY_ADDRESS to a cluster"
            )
    return resolved


def needs_cpus(config: AnimateConfig) -> int:
    """A share of a CPU for each replica, and for reading images and writing videos beside them."""
    replicas = max(config.min_replicas, config.max_replicas or 1)
    return math.ceil((1 if config.num_gpus else 0.6) * replicas + 0.3 + 0.2)


def main() -> int:
    return common.main(AnimateConfig, resolve, job.run, needs_cpus)


if __name__ == "__main__":
    sys.exit(main())
