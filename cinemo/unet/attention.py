"""Attention of the U-Net: within a frame, to the text, and between frames.

Knows tokens in the layout (B, N, S, C): batch, frames, cells of a frame (h * w), channels. Knows nothing of
convolutions, timesteps or what a frame means. Module and parameter names are the official checkpoint's.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

ROTARY_DIM = 32  # channels of each head that turn with the frame's position; the rest stay
ROTARY_THETA = 10_000.0
NUM_BUCKETS = 32  # rows of the relative-position table: 16 for past and present keys, 16 for future ones
MAX_DISTANCE = 32


class FramePositions(NamedTuple):
    """What temporal attention needs to know of N frames; the same in every block, so made once a forward pass."""

    bucket: Tensor  # int64 (N, N): row of the bias table for [query, key]
    cos: Tensor  # (N, ROTARY_DIM)
    sin: Tensor  # (N, ROTARY_DIM)


def rotary_frequencies(device: torch.device | None = None) -> Tensor:
    """Angular speeds of the rotary pairs, float32 (ROTARY_DIM / 2,)."""
    exponent = torch.arange(0, ROTARY_DIM, 2, device=device).float() / ROTARY_DIM
    return 1.0 / ROTARY_THETA**exponent


def relative_position_bucket(offset: Tensor) -> Tensor:
    """T5's two-sided bucket of `offset` = key index - query index (int64, any shape), 0..31.

    Distances below 8 have a bucket each; beyond, buckets grow with the logarithm up to distance 32.
    """
    half = NUM_BUCKETS // 2
    exact = half // 2
    distance = offset.abs()
    # clamp keeps log(0) out of the branch that `where` does not take
    log_part = exact + (
        torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    ).long().clamp(max=half - 1 - exact)
    return torch.where(offset > 0, half, 0) + torch.where(distance < exact, distance, log_part)


def frame_positions(num_frames: int, dtype: torch.dtype, device: torch.device) -> FramePositions:
    """Positions of frames 0..num_frames-1. Angles are float64 for a float64 model and float32 for any other."""
    index = torch.arange(num_frames, device=device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    angles = index.to(wide)[:, None] * rotary_frequencies(device).to(wide)[None]
    angles = angles.repeat_interleave(2, dim=-1)
    return FramePositions(
        bucket=relative_position_bucket(index[None, :] - index[:, None]),
        cos=angles.cos().to(dtype),
        sin=angles.sin().to(dtype),
    )


def rotate(x: Tensor, positions: FramePositions) -> Tensor:
    """Rotary embedding (RoFormer) of x (..., N, head size >= ROTARY_DIM): neighbouring channels are a pair."""
    turned, rest = x[..., :ROTARY_DIM], x[..., ROTARY_DIM:]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    quarter = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat((turned * positions.cos + quarter * positions.sin, rest), dim=-1)


class Attention(nn.Module):
    """Multi-head attention of x (B, L, C) to context (B, T, D); to itself when there is none. q, k, v have no bias."""

    def __init__(self, channels: int, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_v = nn.Linear(context_dim or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads), without a copy."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.split_heads(self.to_q(x)),
            self.split_heads(self.to_k(context)),
            self.split_heads(self.to_v(context)),
        )

    def merge(self, x: Tensor) -> Tensor:
        return self.to_out[0](x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        q, k, v = self.project(x, x if context is None else context)
        return self.merge(F.scaled_dot_product_attention(q, k, v))


class RelativePositionBias(nn.Module):
    """A learned bias for every head and relative position (T5)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(NUM_BUCKETS, num_heads)

    def forward(self, bucket: Tensor) -> Tensor:
        """int64 (N, N) -> (heads, N, N)"""
        return self.relative_attention_bias(bucket).permute(2, 0, 1)


class RotaryBuffer(nn.Module):
    """Holds the name `rotary_emb.freqs` of the official files, which repeat this constant in every block.

    Never read: a half-precision file would round it. `frame_positions` computes it anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("freqs", rotary_frequencies())


class TemporalAttention(Attention):
    """Attention between the frames of one cell, x (B, N, C), with rotary and relative positions."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__(channels, num_heads)
        if channels // num_heads < ROTARY_DIM:
            raise ValueError(
                f"attention_head_dim {num_heads} gives heads of {channels // num_heads} channels at a level of "
                f"{channels}; temporal attention needs at least {ROTARY_DIM}, so use fewer heads or more channels"
            )
        self.time_rel_pos_bias = RelativePositionBias(num_heads)
        self.rotary_emb = RotaryBuffer()
        nn.init.zeros_(self.to_out[0].weight)  # a new model starts as an image model, frame by frame

    def forward(self, x: Tensor, positions: FramePositions) -> Tensor:  # type: ignore[override]
        q, k, v = self.project(x, x)
        bias = self.time_rel_pos_bias(positions.bucket)
        out = F.scaled_dot_product_attention(
            rotate(q, positions), rotate(k, positions), v, attn_mask=bias.to(q.dtype)[None]
        )
        return self.merge(out)


class TransformerBlock(nn.Module):
    """Self-attention, text cross-attention, temporal attention and a GEGLU, each with a layer norm and a skip."""

    def __init__(self, channels: int, num_heads: int, text_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, num_heads, text_dim)
        self.norm_temp = nn.LayerNorm(channels)
        self.attn_temp = TemporalAttention(channels, num_heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, x: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        """x (B, N, S, C), text (B, T, D) -> (B, N, S, C)"""
        batch, frames, cells, channels = x.shape
        x = x + self.attn1(self.norm1(x).flatten(0, 1)).view_as(x)
        # The text is the same for every frame, so the frames share one set of keys and values.
        x = x + self.attn2(self.norm2(x).flatten(1, 2), text).view_as(x)
        by_cell = self.norm_temp(x).transpose(1, 2).reshape(batch * cells, frames, channels)
        x = x + self.attn_temp(by_cell, positions).view(batch, cells, frames, channels).transpose(1, 2)
        return x + self.ff(self.norm3(x))
