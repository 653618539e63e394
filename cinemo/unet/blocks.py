"""Blocks of the U-Net (Fig. 2 of the paper): ResNet, transformer, and the down, mid and up blocks made of them.

Hidden states are (B, N, H, W, C) with channels last in memory throughout, so that attention, linear layers and
channels-last convolutions all use views of the same memory. `emb` is the embedding of timestep and motion bucket.
Module and parameter names are the official checkpoint's.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cinemo.unet import ops
from cinemo.unet.attention import FramePositions, TransformerBlock


class ResnetBlock(nn.Module):
    """Two convolutions with the embedding added between them; a 1x1 shortcut if the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, states: list[Tensor], emb: Tensor) -> Tensor:
        """states (B, N, H, W, C1), (B, N, H, W, C2), ..., concatenated by channel; emb (B, E) -> (B, N, H, W, C').

        Empties the list, so that the states are freed as soon as they have been read.
        """
        shift = self.time_emb_proj(F.silu(emb))[:, None, None, None]
        if not ops.is_split(states, ops.PART_BYTES):
            states[:] = [ops.concat_channels(states)]  # once, for both branches
        hidden = ops.norm_silu_conv(self.norm1, self.conv1, states)
        hidden = hidden + shift if torch.is_grad_enabled() else hidden.add_(shift)
        shortcut = ops.conv_1x1(self.conv_shortcut, states) if hasattr(self, "conv_shortcut") else states[0]
        states.clear()
        return ops.conv_frames(self.conv2, ops.silu(ops.norm_clip(self.norm2, hidden)), shortcut)


class Transformer(nn.Module):
    """Per-frame norm, 1x1 projection, one transformer block, 1x1 projection, skip connection."""

    def __init__(self, channels: int, num_heads: int, text_dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, text_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        hidden = ops.conv_frames(self.proj_in, ops.norm_frames(self.norm, x))
        hidden = self.transformer_blocks[0](hidden.flatten(2, 3), text, positions).reshape(x.shape)
        return ops.conv_frames(self.proj_out, hidden, x)


class Resample(nn.Module):
    """Convolution to the next level: stride 2 on the way down, stride 1 after upsampling on the way up."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)


class Block(nn.Module):
    """Pairs of ResNet and (if `num_heads` is given) transformer at one resolution, then optionally a resampling."""

    # Set on every level by diffusers' enable_gradient_checkpointing: a pair then keeps only its input for backward.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(
        self,
        widths: Sequence[tuple[int, int]],
        num_heads: int | None,
        emb_dim: int,
        text_dim: int,
        groups: int,
        eps: float,
    ) -> None:
        """widths: (channels in, channels out) of each ResNet."""
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(i, o, emb_dim, groups, eps) for i, o in widths])
        if num_heads is not None:
            self.attentions = nn.ModuleList([Transformer(o, num_heads, text_dim, groups) for _, o in widths])

    def layer(self, index: int, states: list[Tensor], emb: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        """Apply ResNet and transformer `index`; gradient checkpointing recomputes them in the backward pass.

        states: inputs of the ResNet, as in ResnetBlock.forward.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.pair_of, index, emb, text, positions, *states)
        return self.pair(index, states, emb, text, positions)

    def pair_of(self, index: int, emb: Tensor, text: Tensor, positions: FramePositions, *states: Tensor) -> Tensor:
        """`pair` with its states as separate arguments, because checkpointing does not look for tensors in lists."""
        return self.pair(index, list(states), emb, text, positions)

    def pair(self, index: int, states: list[Tensor], emb: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        x = self.resnets[index](states, emb)
        return self.attentions[index](x, text, positions) if hasattr(self, "attentions") else x


class DownBlock(Block):
    def forward(
        self, x: Tensor, emb: Tensor, text: Tensor, positions: FramePositions, resample: bool = True
    ) -> list[Tensor]:
        """Return the skip connections, in order; the last one is the input of the next block.

        resample: whether there is a next block.
        """
        skips = []
        for index in range(len(self.resnets)):
            x = self.layer(index, [x], emb, text, positions)
            skips.append(x)
        if resample and hasattr(self, "downsamplers"):
            skips.append(ops.conv_frames(self.downsamplers[0].conv, x))
        return skips


class UpBlock(Block):
    def forward(
        self, states: list[Tensor], size: Sequence[int], emb: Tensor, text: Tensor, positions: FramePositions
    ) -> Tensor:
        """states: a skip connection for each ResNet, the last one used first, and then the output of the block below.

        Empties the list, which frees memory if the caller holds no other reference. (DeepSpeed's ZeRO 3 passes every
        module copies of its lists: the caller's list then stays as it was.) size: (H, W) of the next block.
        """
        for index in range(len(self.resnets)):
            states.append(self.layer(index, [states.pop(), states.pop()], emb, text, positions))
        (x,) = states
        if not hasattr(self, "upsamplers"):
            return x
        return ops.upsample_conv(self.upsamplers[0].conv, x, size)


class MidBlock(nn.Module):
    """ResNet, transformer and ResNet at the lowest resolution."""

    def __init__(self, channels: int, num_heads: int, emb_dim: int, text_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, emb_dim, groups, eps) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(channels, num_heads, text_dim, groups)])

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        x = self.attentions[0](self.resnets[0]([x], emb), text, positions)
        return self.resnets[1]([x], emb)
