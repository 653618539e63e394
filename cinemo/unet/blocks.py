"""Convolutional blocks of the U-Net: ResNet, transformer, and the three kinds of level.

Hidden states are (B, N, H, W, C) with channels last in memory from end to end: attention, linear layers and
channels-last convolutions then all see views of the same memory. Knows nothing of timesteps or motion: `emb` is a
vector. Module and parameter names are the official checkpoint's.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cinemo.unet.attention import FramePositions, TransformerBlock
from cinemo.unet.pack import conv2d
from cinemo.unet.parts import in_parts

PART_BYTES = 20 * 2**20  # of a clip that convolutions take at once: all of it up to 20 x 32 cells in bfloat16


def conv_frames(conv: nn.Conv2d, x: Tensor, plus: Tensor | None = None) -> Tensor:
    """A 2-D convolution of every frame, (B, N, H, W, C) -> (B, N, H', W', C'); `plus` is added to the result."""
    added = None if plus is None else plus.flatten(0, 1).permute(0, 3, 1, 2)
    out = conv2d(conv, x.flatten(0, 1).permute(0, 3, 1, 2), added)
    return out.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])


def norm_clip(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm with statistics over all frames of a clip, as the official ResNets have it.

    The frames are stacked into one tall image, which is a view and takes the fast channels-last kernel.
    """
    return norm(x.flatten(1, 2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape)


def clip_affine(norm: nn.GroupNorm, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What norm_clip does to `states` side by side, as a scale and a shift of each channel: (B, 1, 1, 1, C) each.

    So that the frames can be normed a few at a time, and never lie joined in memory.
    """
    wide = torch.promote_types(states[0].dtype, torch.float32)
    found = [torch.var_mean(x.to(wide), dim=(1, 2, 3), correction=0) for x in states]
    variance, mean = (torch.cat(each, dim=-1).unflatten(-1, (norm.num_groups, -1)) for each in zip(*found, strict=True))
    middle = mean.mean(dim=-1, keepdim=True)
    spread = (variance + (mean - middle) ** 2).mean(dim=-1, keepdim=True)  # of the group: within channels and between
    scale = (spread + norm.eps).rsqrt() * norm.weight.to(wide).unflatten(0, (norm.num_groups, -1))
    shift = norm.bias.to(wide).unflatten(0, (norm.num_groups, -1)) - middle * scale
    return scale.flatten(1)[:, None, None, None].to(states[0]), shift.flatten(1)[:, None, None, None].to(states[0])


def norm_frames(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm with statistics per frame, as the official transformers have it."""
    return norm(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape)


def silu(x: Tensor) -> Tensor:
    """SiLU of what nobody else reads: without gradients, in place."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def beside(states: Sequence[Tensor]) -> Tensor:
    """Channels side by side."""
    return torch.cat(states, dim=-1) if len(states) > 1 else states[0]


class ResnetBlock(nn.Module):
    """Two convolutions with the embedding added between them; a 1x1 shortcut where the width changes."""

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
        """states (B, N, H, W, C1), (B, N, H, W, C2), ..., C in all, side by side; emb (B, E) -> (B, N, H, W, C').

        Takes the states out of the list, so that they are gone as soon as they were read.
        """
        shift = self.time_emb_proj(F.silu(emb))[:, None, None, None]
        if torch.is_grad_enabled() or sum(x.nbytes for x in states) <= PART_BYTES:
            states[:] = [beside(states)]
            hidden = conv_frames(self.conv1, silu(norm_clip(self.norm1, states[0]))) + shift
        else:  # the norm's statistics are of all frames, so that for some of them it is taken apart
            scale, offset = clip_affine(self.norm1, states)

            def convolve(*part: Tensor) -> Tensor:
                return conv_frames(self.conv1, silu((beside(part) * scale).add_(offset)))

            hidden = in_parts(convolve, states, 1, PART_BYTES).add_(shift)
        shortcut = states[0] if not hasattr(self, "conv_shortcut") else in_parts(self.shortcut, states, 1, PART_BYTES)
        states.clear()
        return conv_frames(self.conv2, silu(norm_clip(self.norm2, hidden)), shortcut)

    def shortcut(self, *states: Tensor) -> Tensor:
        return conv_frames(self.conv_shortcut, beside(states))


class Transformer(nn.Module):
    """Per-frame norm, 1x1 projection, one transformer block, projection back, skip."""

    def __init__(self, channels: int, num_heads: int, text_dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, num_heads, text_dim)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        hidden = conv_frames(self.proj_in, norm_frames(self.norm, x))
        hidden = self.transformer_blocks[0](hidden.flatten(2, 3), text, positions).reshape(x.shape)
        return conv_frames(self.proj_out, hidden, x)


class Resample(nn.Module):
    """The convolution towards the next level: stride 2 on the way down, stride 1 after enlarging on the way up."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)


class Level(nn.Module):
    """One level of the U-Net: pairs of ResNet and (where `num_heads` is given) transformer, then maybe a resample."""

    # Set on every level by diffusers' enable_gradient_checkpointing: a pair then keeps its input alone for backward.
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
        """ResNet and transformer `index`, computed a second time in backward where memory is short.

        states: what the ResNet gets, side by side. The list is emptied: nothing is kept longer than it is needed.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self.pair_of, index, emb, text, positions, *states)
        return self.pair(index, states, emb, text, positions)

    def pair_of(self, index: int, emb: Tensor, text: Tensor, positions: FramePositions, *states: Tensor) -> Tensor:
        """`pair` of states that are given one by one, as checkpointing wants its tensors."""
        return self.pair(index, list(states), emb, text, positions)

    def pair(self, index: int, states: list[Tensor], emb: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        x = self.resnets[index](states, emb)
        return self.attentions[index](x, text, positions) if hasattr(self, "attentions") else x


class DownLevel(Level):
    def forward(
        self, x: Tensor, emb: Tensor, text: Tensor, positions: FramePositions, resample: bool = True
    ) -> list[Tensor]:
        """Returns what the way up takes back, in order; the last is what the next level gets.

        resample: whether there is a next level.
        """
        skips = []
        for index in range(len(self.resnets)):
            x = self.layer(index, [x], emb, text, positions)
            skips.append(x)
        if resample and hasattr(self, "downsamplers"):
            skips.append(conv_frames(self.downsamplers[0].conv, x))
        return skips


class UpLevel(Level):
    def forward(
        self, states: list[Tensor], size: Sequence[int], emb: Tensor, text: Tensor, positions: FramePositions
    ) -> Tensor:
        """states: one skip for each ResNet, the first to be used behind the others, and last what comes from below.

        The list is emptied on the way, which frees memory where the caller holds nothing of it. (DeepSpeed's ZeRO 3
        hands every module a copy of the lists it is called with: the caller's is then left as it was.)
        size: (H, W) that the next level wants.
        """
        for index in range(len(self.resnets)):
            states.append(self.layer(index, [states.pop(), states.pop()], emb, text, positions))
        (x,) = states
        if not hasattr(self, "upsamplers"):
            return x
        return in_parts(lambda part: conv_frames(self.upsamplers[0].conv, enlarge(part, size)), [x], 1, PART_BYTES // 4)


class MidLevel(nn.Module):
    """ResNet, transformer, ResNet at the smallest size."""

    def __init__(self, channels: int, num_heads: int, emb_dim: int, text_dim: int, groups: int, eps: float) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, emb_dim, groups, eps) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(channels, num_heads, text_dim, groups)])

    def forward(self, x: Tensor, emb: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        x = self.attentions[0](self.resnets[0]([x], emb), text, positions)
        return self.resnets[1]([x], emb)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour enlargement of every frame to (H, W): the skip's size, so sizes that do not halve work too."""
    out = F.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), size=tuple(size), mode="nearest")
    return out.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])
