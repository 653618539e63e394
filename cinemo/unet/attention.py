"""Attention of the U-Net: within a frame, to the text, and between frames.

Tokens have the layout (B, N, S, C): batch, frames, cells of a frame (h * w), channels. Module and parameter names are
the official checkpoint's.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from cinemo.unet.ops import in_parts
from cinemo.unet.pack import TILE, geglu, is_fast, linear

ROTARY_DIM = 32  # channels of each head that are rotated by the frame's position
ROTARY_THETA = 10_000.0
NUM_BUCKETS = 32  # rows of the relative-position table: 16 for past and present keys, 16 for future ones
MAX_DISTANCE = 32
# Bytes that a layer processes at once. Linear layers become faster: their intermediate values stay in the caches.
LINEAR_BYTES, ATTENTION_BYTES = 5 * 2**19, 2**23


class FramePositions(NamedTuple):
    """Positions of N frames for temporal attention; the same in every block, so computed once per forward pass."""

    bucket: Tensor  # int64 (N, N): row of the bias table for [query, key]
    cos: Tensor  # (N, 1, 1, ROTARY_DIM)
    sin: Tensor  # (N, 1, 1, ROTARY_DIM), negative for the first channel of each pair


def rotary_frequencies(device: torch.device | None = None) -> Tensor:
    """Angular speeds of the rotary pairs, float32 (ROTARY_DIM / 2,)."""
    exponent = torch.arange(0, ROTARY_DIM, 2, device=device).float() / ROTARY_DIM
    return 1.0 / ROTARY_THETA**exponent


def relative_position_bucket(offset: Tensor) -> Tensor:
    """T5's bidirectional bucket of `offset` = key index - query index (int64, any shape), 0..31.

    Distances below 8 have one bucket each; beyond, bucket sizes grow logarithmically up to distance 32.
    """
    half = NUM_BUCKETS // 2
    exact = half // 2
    distance = offset.abs()
    # The clamp avoids log(0) in the branch that `where` does not take.
    log_part = exact + (
        torch.log(distance.clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    ).long().clamp(max=half - 1 - exact)
    return torch.where(offset > 0, half, 0) + torch.where(distance < exact, distance, log_part)


def frame_positions(index: Tensor, dtype: torch.dtype) -> FramePositions:
    """Positions of frames numbered `index`, int64 (N,). Angles are float64 for a float64 model, else float32."""
    device = index.device
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    angles = index.to(precision)[:, None] * rotary_frequencies(device).to(precision)[None]
    angles = angles.repeat_interleave(2, dim=-1)[:, None, None]
    sign = torch.arange(ROTARY_DIM, device=device) % 2 * 2.0 - 1.0  # not from a list, which a GPU would wait for
    return FramePositions(
        bucket=relative_position_bucket(index[None, :] - index[:, None]),
        cos=angles.cos().to(dtype),
        sin=(angles.sin() * sign).to(dtype),
    )


def rotate_(x: Tensor, positions: FramePositions) -> Tensor:
    """Apply rotary embedding (RoFormer) in place: x (B, N, S, heads, head size >= ROTARY_DIM), pairs are neighbours."""
    turned = x[..., :ROTARY_DIM]
    swapped = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned.mul_(positions.cos).addcmul_(swapped, positions.sin)
    return x


def is_spelled_out(q: Tensor) -> bool:
    """Whether to avoid the fused kernel: in bfloat16 on CPUs its backward pass is up to six times slower."""
    return torch.is_grad_enabled() and q.dtype == torch.bfloat16 and q.device.type == "cpu"


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v, for q (B, heads, L, d), k and v (B, heads, T, d), bias (1, heads, L, T)."""
    if is_spelled_out(q):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores if bias is None else scores + bias).softmax(dim=-1) @ v
    keys = k.shape[-2]
    if is_fast(q) and keys % TILE and bias is None:  # padding the keys to whole tiles halves the time
        k, v = (F.pad(x, (0, 0, 0, -keys % TILE)) for x in (k, v))
        bias = torch.where(torch.arange(k.shape[-2]) < keys, 0.0, -torch.inf).to(q.dtype).view(1, 1, 1, -1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Attention(nn.Module):
    """Multi-head attention of x (B, L, C) to context (B, T, D), or to itself without one. q, k, v have no bias."""

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

    def forward(self, x: Tensor, context: Tensor | None, residual: Tensor) -> Tensor:
        """x (B, L, C), context (B, T, D) or None -> (B, L, C); residual (B, L, C) is added to the result."""
        context = x if context is None else context
        q = self.split_heads(linear(self.to_q, x))
        k = self.split_heads(linear(self.to_k, context))
        v = self.split_heads(linear(self.to_v, context))
        out = attend(q, k, v).transpose(1, 2).flatten(2)
        del q, k, v  # each is as large as x
        return linear(self.to_out[0], out, residual)


class RelativePositionBias(nn.Module):
    """A learned bias for every head and relative position (T5)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(NUM_BUCKETS, num_heads)

    def forward(self, bucket: Tensor) -> Tensor:
        """int64 (N, N) -> (heads, N, N)"""
        return self.relative_attention_bias(bucket).permute(2, 0, 1)


class RotaryBuffer(nn.Module):
    """Holds the official files' parameter `rotary_emb.freqs`, a constant repeated in every block.

    Never read, because a half-precision file would round it; `frame_positions` computes it instead.
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

    def forward(self, x: Tensor, positions: FramePositions, residual: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, N, S, C) -> the same shape. Projections and rotation keep the memory layout of the frames."""
        q, k, v = (linear(layer, x).unflatten(-1, (self.num_heads, -1)) for layer in (self.to_q, self.to_k, self.to_v))

        def by_cell(states: Tensor) -> Tensor:
            """(B, N, S, heads, C / heads) -> (B * S, heads, N, C / heads), a view where B is 1"""
            return states.permute(0, 2, 3, 1, 4).flatten(0, 1)

        bias = self.time_rel_pos_bias(positions.bucket).to(q.dtype)[None]
        q, k = rotate_(q, positions), rotate_(k, positions)
        out = attend(by_cell(q), by_cell(k), by_cell(v), bias)
        del q, k, v
        out = out.unflatten(0, (x.shape[0], -1)).permute(0, 3, 1, 2, 4)  # (B, N, S, heads, C / heads)
        return linear(self.to_out[0], out.flatten(3), residual)


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

    def feed_forward(self, x: Tensor) -> Tensor:
        project, _, narrow = self.ff.net
        return linear(narrow, geglu(project.proj, self.norm3(x)), x)

    def forward(self, x: Tensor, text: Tensor, positions: FramePositions) -> Tensor:
        """x (B, N, S, C), text (B, T, D) -> (B, N, S, C)"""
        shape = x.shape
        x = in_parts(lambda part: self.attn1(self.norm1(part), None, part), [x.flatten(0, 1)], 0, ATTENTION_BYTES)
        # The text is the same for every frame, so the frames share one set of keys and values.
        x = x.view(len(text), -1, shape[-1])
        x = in_parts(lambda part: self.attn2(self.norm2(part), text, part), [x], 1, ATTENTION_BYTES).view(shape)
        x = in_parts(lambda part: self.attn_temp(self.norm_temp(part), positions, part), [x], 2, ATTENTION_BYTES)
        return in_parts(self.feed_forward, [x.flatten(0, 2)], 0, LINEAR_BYTES).view(shape)
