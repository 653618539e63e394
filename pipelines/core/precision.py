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

    PyTorch's default is neither: convolutions do, products do not. We choose by precision: whoever asks for float32
    gets all of its bits, as on CPUs; beside bfloat16 or float16, what is left in float32 may be fast.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
