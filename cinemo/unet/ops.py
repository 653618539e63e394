"""Operations on the U-Net's hidden states, written for memory and speed so that blocks.py need not be.

Hidden states are (B, N, H, W, C): batch, frames, rows, columns, channels, with channels last in memory.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cinemo.unet.pack import conv2d

PART_BYTES = 20 * 2**20  # that a convolution processes at once: a whole clip up to 20 x 32 cells in bfloat16


def conv_frames(conv: nn.Conv2d, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """A 2-D convolution of every frame, (B, N, H, W, C) -> (B, N, H', W', C'); `plus` is added to the result."""
    added = None if plus is None else plus.flatten(0, 1).permute(0, 3, 1, 2)
    out = conv2d(conv, x.flatten(0, 1).permute(0, 3, 1, 2), added)
    return out.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


def norm_clip(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm with statistics over all frames of a clip, as the official ResNets have it.

    The frames are stacked into one tall image, which is a view, and uses the fast channels-last kernel.
    """
    return norm(x.flatten(1, 2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape)


def clip_affine(norm: nn.GroupNorm, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel that norm_clip applies to concatenated states: (B, 1, 1, 1, C) each.

    They allow normalizing a few frames at a time, without concatenating all states in memory.
    """
    dtype, groups = torch.promote_types(states[0].dtype, torch.float32), norm.num_groups
    moments = [torch.var_mean(x.to(dtype), dim=(1, 2, 3), correction=0) for x in states]
    variance, mean = (torch.cat(parts, dim=-1).unflatten(-1, (groups, -1)) for parts in zip(*moments, strict=True))
    group_mean = mean.mean(dim=-1, keepdim=True)
    # The variance of a group: within its channels, and between them.
    group_variance = (variance + (mean - group_mean) ** 2).mean(dim=-1, keepdim=True)
    scale = (group_variance + norm.eps).rsqrt() * norm.weight.to(dtype).unflatten(0, (groups, -1))
    shift = norm.bias.to(dtype).unflatten(0, (groups, -1)) - group_mean * scale
    return scale.flatten(1)[:, None, None, None].to(states[0]), shift.flatten(1)[:, None, None, None].to(states[0])


def norm_frames(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm with statistics per frame, as the official transformers have it."""
    return norm(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape)


def silu(x: Tensor) -> Tensor:
    """SiLU, in place without gradients: the input must have no other reader."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def concat_channels(states: Sequence[Tensor]) -> Tensor:
    """Concatenate the channels of states: (..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""
    return torch.cat(states, dim=-1) if len(states) > 1 else states[0]


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample every frame to (H, W) by nearest neighbour. The caller passes the skip's size, so odd sizes work too."""
    out = F.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), size=tuple(size), mode="nearest")
    return out.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


def norm_silu_conv(norm: nn.GroupNorm, conv: nn.Conv2d, states: Sequence[Tensor]) -> Tensor:
    """conv(silu(norm(x))), where x is the concatenated states: (B, N, H, W, C')."""
    if not is_split(states, PART_BYTES):
        return conv_frames(conv, silu(norm_clip(norm, concat_channels(states))))
    scale, shift = clip_affine(norm, states)  # from the statistics of all frames

    def convolve(*part: Tensor) -> Tensor:
        return conv_frames(conv, silu((concat_channels(part) * scale).add_(shift)))

    return in_parts(convolve, states, 1, PART_BYTES)


def conv_1x1(conv: nn.Conv2d, states: Sequence[Tensor]) -> Tensor:
    """A 1 x 1 convolution of the concatenated states."""
    return in_parts(lambda *part: conv_frames(conv, concat_channels(part)), states, 1, PART_BYTES)


def upsample_conv(conv: nn.Conv2d, x: Tensor, size: Sequence[int]) -> Tensor:
    """conv(upsample(x, size)) of every frame."""
    return in_parts(lambda part: conv_frames(conv, upsample(part, size)), [x], 1, PART_BYTES // 4)


def is_split(states: Sequence[Tensor], most_bytes: int) -> bool:
    """Whether in_parts processes these states in several parts."""
    return not torch.is_grad_enabled() and states[0].device.type == "cpu" and sum(x.nbytes for x in states) > most_bytes


def in_parts(function: Callable[..., Tensor], states: Sequence[Tensor], dim: int, most_bytes: int) -> Tensor:
    """function(*states), for a function that treats every index of `dim` independently.

    On CPUs without gradients the function is called on parts of at most `most_bytes` (all states together), so that its
    intermediate values are small and stay in the caches. GPUs are faster with few and large operators.
    """
    length = states[0].shape[dim]
    if length == 1 or not is_split(states, most_bytes):
        return function(*states)
    count = max(1, most_bytes * length // sum(x.nbytes for x in states))
    result: Tensor | None = None
    for begin in range(0, length, count):
        part = function(*(x.narrow(dim, begin, min(count, length - begin)) for x in states))
        if result is None:
            result = part.new_empty([length if axis == dim else size for axis, size in enumerate(part.shape)])
        result.narrow(dim, begin, part.shape[dim]).copy_(part)
    assert result is not None, "there is at least one index"
    return result
