"""A straightforward residual U-Net to compare with: one `nn.Module` per box, without regard to memory layout.

States are (B, C, N, H, W), contiguous; every module permutes them to its own layout and back. The text is repeated for
each frame. Attention within frames and to the text is PyTorch's fused kernel; between frames it is written out, because
of its bias. Takes the same configuration and state dictionary as CinemoUNet, and gives the same numbers
(tests/unet/test_speed.py).
"""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from torch import Tensor, nn

from cinemo.unet.attention import ROTARY_DIM, RelativePositionBias, relative_position_bucket, rotary_frequencies


class FrameConv(nn.Conv2d):
    """A 2-D convolution of every frame."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x.transpose(1, 2).flatten(0, 1))
        return out.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2).contiguous()


class Resnet(nn.Module):
    def __init__(self, width_in: int, width: int, emb: int, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps)
        self.conv1 = FrameConv(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, width)
        self.norm2 = nn.GroupNorm(groups, width, eps)
        self.conv2 = FrameConv(width, width, 3, padding=1)
        self.conv_shortcut = FrameConv(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(F.silu(emb))[:, :, None, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context or width, width, bias=False)
        self.to_v = nn.Linear(context or width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).contiguous()

    def merge(self, x: Tensor) -> Tensor:
        return self.to_out[0](x.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        return self.merge(F.scaled_dot_product_attention(q, k, v))


class TemporalAttention(Attention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.time_rel_pos_bias = RelativePositionBias(heads)

    def rotate(self, x: Tensor) -> Tensor:
        index = torch.arange(x.shape[2], device=x.device).float()
        angles = (index[:, None] * rotary_frequencies(x.device)).repeat_interleave(2, dim=-1)
        turned, rest = x[..., :ROTARY_DIM], x[..., ROTARY_DIM:]
        quarter = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
        return torch.cat((turned * angles.cos().to(x.dtype) + quarter * angles.sin().to(x.dtype), rest), dim=-1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.split(self.to_q(x)), self.split(self.to_k(context)), self.split(self.to_v(context))
        index = torch.arange(x.shape[1], device=x.device)
        bias = self.time_rel_pos_bias(relative_position_bucket(index[None] - index[:, None])).to(x.dtype)
        scores = self.rotate(q * q.shape[-1] ** -0.5) @ self.rotate(k).transpose(-1, -2) + bias
        return self.merge(scores.softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, text: int) -> None:
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, heads, text)
        self.norm_temp, self.attn_temp = nn.LayerNorm(width), TemporalAttention(width, heads)
        self.norm3, self.ff = nn.LayerNorm(width), FeedForward(width, activation_fn="geglu")

    def forward(self, x: Tensor, text: Tensor, frames: int) -> Tensor:
        """x (B * N, S, C), text (B * N, T, D)"""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), text)
        over_time = x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1).contiguous()
        normed = self.norm_temp(over_time)
        over_time = over_time + self.attn_temp(normed, normed)
        x = over_time.unflatten(0, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1).contiguous()
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, text: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, heads, text)])

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        frames, (height, width) = x.shape[2], x.shape[3:]
        pictures = x.transpose(1, 2).flatten(0, 1)
        hidden = self.proj_in(self.norm(pictures))
        tokens = hidden.flatten(2).transpose(1, 2).contiguous()
        tokens = self.transformer_blocks[0](tokens, text.repeat_interleave(frames, dim=0), frames)
        hidden = self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)).contiguous())
        return x + hidden.unflatten(0, (x.shape[0], frames)).transpose(1, 2)


class Resample(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = FrameConv(width, width, 3, stride=stride, padding=1)


class Level(nn.Module):
    def __init__(self, widths: list[tuple[int, int]], heads: int | None, text: int, resample: int, **shared: Any):
        """resample: 2 adds a downsampler, 1 an upsampler, 0 none."""
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(i, o, **shared) for i, o in widths])
        last = widths[-1][1]
        if heads is not None:
            self.attentions = nn.ModuleList([Transformer(o, heads, text, shared["groups"]) for _, o in widths])
        if resample:
            name = "downsamplers" if resample == 2 else "upsamplers"
            setattr(self, name, nn.ModuleList([Resample(last, resample)]))

    def pair(self, index: int, x: Tensor, emb: Tensor, text: Tensor) -> Tensor:
        x = self.resnets[index](x, emb)
        return self.attentions[index](x, text) if hasattr(self, "attentions") else x


class Mid(nn.Module):
    def __init__(self, width: int, heads: int, text: int, **shared: Any) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(width, width, **shared) for _ in range(2)])
        self.attentions = nn.ModuleList([Transformer(width, heads, text, shared["groups"])])


class PlainUNet(nn.Module):
    """config: as CinemoUNet's."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        widths, layers = list(config["block_out_channels"]), config["layers_per_block"]
        text, heads = config["cross_attention_dim"], config["attention_head_dim"]
        heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
        self.first, self.motion = widths[0], config["addition_time_embed_dim"]
        groups, eps, emb = config["norm_num_groups"], config["norm_eps"], 4 * widths[0]
        shared: dict[str, Any] = {"emb": emb, "groups": groups, "eps": eps}
        self.conv_in = FrameConv(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding, self.add_embedding = TimestepEmbedding(widths[0], emb), TimestepEmbedding(self.motion, emb)
        self.down_blocks, self.up_blocks, skips = nn.ModuleList(), nn.ModuleList(), [widths[0]]
        for level, width in enumerate(widths):
            chain = [widths[max(0, level - 1)]] + [width] * layers
            num_heads = heads[level] if config["down_block_types"][level].startswith("Cross") else None
            last = level == len(widths) - 1
            self.down_blocks.append(Level(list(pairwise(chain)), num_heads, text, 0 if last else 2, **shared))
            skips += [width] * (layers if last else layers + 1)
        self.mid_block = Mid(widths[-1], heads[-1], text, **shared)
        for index, level in enumerate(reversed(range(len(widths)))):
            chain = [widths[min(level + 1, len(widths) - 1)]] + [widths[level]] * layers
            num_heads = heads[level] if config["up_block_types"][index].startswith("Cross") else None
            pairs = [(hidden + skips.pop(), widths[level]) for hidden in chain]
            self.up_blocks.append(Level(pairs, num_heads, text, 1 if level else 0, **shared))
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], eps)
        self.conv_out = FrameConv(widths[0], config["out_channels"], 3, padding=1)

    def forward(self, sample: Tensor, timestep: int, text: Tensor, image: Tensor, motion: Tensor) -> Tensor:
        """As CinemoUNet, with one timestep; returns the prediction itself."""
        batch = len(sample)
        steps = torch.as_tensor(timestep, device=sample.device).expand(batch)
        emb = self.time_embedding(get_timestep_embedding(steps, self.first, True, 0).to(sample.dtype))
        emb = emb + self.add_embedding(get_timestep_embedding(motion, self.motion, True, 0).to(sample.dtype))
        x = self.conv_in(torch.cat((image, image + sample), dim=2))
        skips = [x]
        for level in self.down_blocks:
            for index in range(len(level.resnets)):
                x = level.pair(index, x, emb, text)
                skips.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0].conv(x)
                skips.append(x)
        x = self.mid_block.resnets[0](x, emb)
        x = self.mid_block.resnets[1](self.mid_block.attentions[0](x, text), emb)
        for level in self.up_blocks:
            for index in range(len(level.resnets)):
                x = level.pair(index, torch.cat((x, skips.pop()), dim=1), emb, text)
            if hasattr(level, "upsamplers"):
                larger = F.interpolate(x, size=(x.shape[2], *skips[-1].shape[3:]), mode="nearest")
                x = level.upsamplers[0].conv(larger)
        return self.conv_out(F.silu(self.conv_norm_out(x)))[:, :, 1:]
