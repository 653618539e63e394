"""LoRA adapters within the U-Net's layers (Hu et al., arXiv 2106.09685), as peft injects them.

The U-Net computes linear layers and convolutions from their weights (pack.py), not by their forward methods, so peft's
wrapper of a layer is never called. Instead pack.py computes the wrapped layer, and add_adapters adds the adapters'
output.
"""

import torch
from torch import Tensor, nn


def base_of(layer: nn.Module) -> nn.Module:
    """The layer that peft has wrapped, or the layer itself. If adapters are merged but disabled, they are unmerged."""
    if not hasattr(layer, "base_layer"):
        return layer
    if layer.disable_adapters and layer.merged:
        layer.unmerge()  # as peft's own forward does
    return layer.base_layer


def active_in(layer: nn.Module) -> list[str]:
    """Names of the adapters that change what a layer computes, in the order in which they are added."""
    if not hasattr(layer, "base_layer") or layer.disable_adapters or layer.merged:
        return []
    assert not layer.lora_variant, "only plain LoRA is computed here, which cinemo.lora makes sure of"
    return [name for name in layer.active_adapters if name in layer.lora_A and layer.scaling[name] != 0]


def add_adapters(layer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """out plus scaling * B(A(x)) of each active adapter; changes `out` in place if no gradients are needed.

    x: input of the layer. out: output of base_of(layer) for x.
    """
    for name in active_in(layer):
        change = layer.lora_B[name](layer.lora_A[name](layer.lora_dropout[name](x)))
        scale = layer.scaling[name]
        out = torch.add(out, change, alpha=scale) if torch.is_grad_enabled() else out.add_(change, alpha=scale)
    return out
