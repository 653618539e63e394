"""Precision of arithmetic: what "auto" means, and TF32.

Stable Diffusion's VAE overflows in float16; cinemo.pipeline loads it in float32 then.
"""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
AUTO = "arithmetic of a replica; auto: bfloat16 on GPUs, float32 on CPUs"


def of_replica(precision: Precision, num_gpus: float) -> str:
    """Name of a torch dtype: that of the setting, or, for "auto", bfloat16 with a GPU and float32 without."""
    if precision != "auto":
        return precision
    return "bfloat16" if num_gpus else "float32"


def allow_tf32(allowed: bool) -> None:
    """Let products and convolutions of float32 tensors on GPUs round their inputs to TF32 (10 bits), or not.

    PyTorch's default is mixed: convolutions do, products do not. Here the precision decides: float32 keeps all of its
    bits, as on CPUs; with bfloat16 or float16, the remaining float32 operations may use TF32.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
