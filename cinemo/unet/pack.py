"""Convolutions and linear layers in bfloat16 on CPUs, without gradients, by oneDNN's own operators.

They add the bias and the residual in the same pass. PyTorch reorders a convolution's weight to oneDNN's layout at every
call, which at the U-Net's lowest levels takes longer than the convolution: here a packed copy is cached as long as the
module lives, and replaced when the weight changes; everything else (saving, moving, training) sees only the weight. An
AMX tile holds 16 cells of a row, so narrow pictures are placed side by side in one wide picture. Neither changes a
number. Other dtypes and devices use PyTorch's own layers.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cinemo.unet.adapters import active_in, add_adapters, base_of

TILE = 16  # rows of an AMX tile
PIECE_BYTES = 2**24  # of a weight
_packed: WeakKeyDictionary[nn.Conv2d, tuple[Any, Tensor]] = WeakKeyDictionary()  # (version of the weight, packed copy)


def linear(layer: nn.Linear, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """layer(x), or plus + layer(x), with the layer's adapters."""
    base = base_of(layer)
    if not is_fast(x, base.weight):
        out = base(x) if plus is None else plus + base(x)
    elif plus is None:
        out = torch.ops.mkldnn._linear_pointwise(x, base.weight, base.bias, "none", [], "")
    else:
        out = torch.ops.mkldnn._linear_pointwise.binary(x, plus, base.weight, base.bias, "add")
    return add_adapters(layer, x, out)


def geglu(layer: nn.Linear, x: Tensor) -> Tensor:
    """hidden * GELU(gate), for a layer that outputs hidden and gate side by side: (..., C) -> (..., half its width)."""
    base = base_of(layer)
    if active_in(layer) or not is_fast(x, base.weight):
        hidden, gate = linear(layer, x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)
    (hidden_weight, gate_weight), (hidden_bias, gate_bias) = base.weight.chunk(2), base.bias.chunk(2)
    gate = torch.ops.mkldnn._linear_pointwise(x, gate_weight, gate_bias, "gelu", [], "none")
    return torch.ops.mkldnn._linear_pointwise.binary(x, gate, hidden_weight, hidden_bias, "mul")


def conv2d(conv: nn.Conv2d, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """conv(x), or plus + conv(x), with the layer's adapters, for x (B, C, H, W), channels last in memory."""
    return add_adapters(conv, x, _conv2d(base_of(conv), x, plus))


def _conv2d(conv: nn.Conv2d, x: Tensor, plus: Tensor | None) -> Tensor:
    if not is_fast(x, conv.weight):
        out = _convolve_in_parts(conv, x)
        return out if plus is None else plus + out
    batch, channels, height, width = x.shape
    if batch == 1 or width >= TILE or conv.kernel_size != (3, 3) or conv.stride != (1, 1):
        return _convolve(conv, x, plus)
    # (B, H, W, C) -> (1, H, B * (W + 1), C): a column of zeros between neighbours pads both.
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 1)).transpose(0, 1)
    wide = rows.reshape(1, height, batch * (width + 1), channels).permute(0, 3, 1, 2)
    out = _convolve(conv, wide).permute(0, 2, 3, 1).unflatten(2, (batch, width + 1))
    out = out[0, :, :, :width].permute(1, 3, 0, 2)
    return out if plus is None else plus + out


def is_fast(*tensors: Tensor) -> bool:
    """Whether oneDNN's operators can be used: all tensors bfloat16 (under autocast weights are not), on a CPU."""
    x = tensors[0]
    return (
        all(tensor.dtype == torch.bfloat16 for tensor in tensors)
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _convolve(conv: nn.Conv2d, x: Tensor, plus: Tensor | None = None) -> Tensor:
    layout = (conv.padding, conv.stride, conv.dilation, conv.groups)
    if plus is None:
        return torch.ops.mkldnn._convolution_pointwise(x, packed(conv), conv.bias, *layout, "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, plus, packed(conv), conv.bias, *layout, "add", 1.0, None, [], None
    )


def _convolve_in_parts(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x), with a large weight split by output channels, because PyTorch makes a reordered copy of it."""
    pieces = conv.weight.nbytes // PIECE_BYTES
    if torch.is_grad_enabled() or x.device.type != "cpu" or pieces < 2:
        return conv(x)
    weights, biases = conv.weight.chunk(pieces), conv.bias.chunk(pieces)
    layout = (conv.stride, conv.padding, conv.dilation, conv.groups)
    return torch.cat([F.conv2d(x, *piece, *layout) for piece in zip(weights, biases, strict=True)], dim=1)


def forget(module: nn.Module) -> None:
    """Drop the packed weights of a module: peft merges adapters through `weight.data`, which changes no version."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            _packed.pop(layer, None)


def packed(conv: nn.Conv2d) -> Tensor:
    """The weight of a convolution in oneDNN's layout, from the cache if the weight has not changed."""
    weight = conv.weight
    version = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)  # inference tensors have no version
    cached = _packed.get(conv)
    if cached is None or cached[0] != version:
        layout = (conv.padding, conv.stride, conv.dilation, conv.groups)
        cached = version, torch._C._nn.mkldnn_reorder_conv2d_weight(weight.detach().to_mkldnn(), *layout)
        _packed[conv] = cached
    return cached[1]
