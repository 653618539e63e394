"""What "auto" means, to replicas and to training."""

import pytest
from pydantic import ValidationError

from pipelines.animate.config import AnimateConfig
from pipelines.core.precision import allow_tf32
from pipelines.serving.settings import Replicas


def test_replicas_compute_in_bfloat16_on_gpus_and_in_float32_on_cpus_unless_told_otherwise() -> None:
    for num_gpus, given, expected in (
        (0, {}, "float32"),
        (0.5, {}, "bfloat16"),
        (1, {"precision": "float32"}, "float32"),
        (0, {"precision": "float16"}, "float16"),
    ):
        assert AnimateConfig(catalog="a", output="b", num_gpus=num_gpus, **given).arithmetic == expected
        assert Replicas(num_gpus=num_gpus, **given).arithmetic == expected
    with pytest.raises(ValidationError, match="'auto', 'float32', 'bfloat16' or 'float16'"):
        Replicas(precision="fp8")


def test_tf32_is_switched_for_products_and_convolutions_together() -> None:
    import torch

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            allow_tf32(allowed)
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
