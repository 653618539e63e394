"""CinemoUNet: noisy motion residuals, image latents, text, motion bucket and timestep -> prediction.

Builds the levels and joins the image with the residuals (Algorithm 1, line 9). `CinemoUNet.from_pretrained` reads the
official checkpoint's unet/ directory unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from cinemo.residual import join
from cinemo.unet.attention import frame_positions
from cinemo.unet.blocks import DownBlock, MidBlock, Resample, UpBlock
from cinemo.unet.ops import conv_frames, norm_clip, silu
from cinemo.unet.pack import forget

# Keys of the official config.json that this model fixes. Other values would change the arithmetic, so they are refused.
FIXED_CONFIG: dict[str, Any] = {
    **dict.fromkeys((
        "class_embed_type", "cross_attention_norm", "encoder_hid_dim", "encoder_hid_dim_type",
        "mid_block_only_cross_attention", "num_attention_heads", "num_class_embeds",
        "projection_class_embeddings_input_dim", "time_cond_proj_dim", "time_embedding_act_fn", "time_embedding_dim",
        "timestep_post_act",
    ), None),
    **dict.fromkeys((
        "center_input_sample", "class_embeddings_concat", "dual_cross_attention", "only_cross_attention",
        "resnet_skip_time_act", "upcast_attention", "use_linear_projection",
    ), False),
    "act_fn": "silu", "addition_embed_type": "motion_ids", "conv_in_kernel": 3, "conv_out_kernel": 3,
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock3DCrossAttn", "resnet_out_scale_factor": 1.0, "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional", "transformer_layers_per_block": 1,
}  # fmt: skip
# Keys without effect: heads of an unused embedding, the size at which a model was first trained.
UNUSED_CONFIG = ("addition_embed_type_num_heads", "sample_size")


@dataclass
class CinemoUNetOutput(BaseOutput):
    """sample: (B, C, F, h, w), the prediction for the motion frames. features: see CinemoUNet.forward."""

    sample: Tensor
    features: Tensor | None = None


class CinemoUNet(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The residual motion U-Net. The defaults are the paper's full size (911,092,740 parameters).

    in_channels, out_channels: latent channels. block_out_channels: width of each level, widest last.
    attention_head_dim: NUMBER of heads, for all levels or one each (the official files use this name).
    cross_attention_dim: width of the text features. addition_time_embed_dim: width of the motion bucket's sinusoid.
    Raises ValueError for widths that are not multiples of heads and norm groups, and for unknown block types.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("ResnetBlock", "TransformerBlock")  # what compile_repeated_blocks compiles
    _keys_to_ignore_on_load_unexpected = (r".*rotary_emb\.freqs",)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        attention_head_dim: int | Sequence[int] = 8,
        layers_per_block: int = 2,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        addition_time_embed_dim: int = 256,
        down_block_types: Sequence[str] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types: Sequence[str] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
    ) -> None:
        super().__init__()
        widths = list(block_out_channels)
        levels = len(widths)
        heads = [attention_head_dim] * levels if isinstance(attention_head_dim, int) else list(attention_head_dim)
        check_config(widths, heads, norm_num_groups, down_block_types, up_block_types)
        emb_dim = widths[0] * 4
        shared = (emb_dim, cross_attention_dim, norm_num_groups, norm_eps)

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], emb_dim)
        self.add_embedding = TimestepEmbedding(addition_time_embed_dim, emb_dim)
        nn.init.zeros_(self.add_embedding.linear_2.weight)  # starts without effect on a model without motion control

        self.down_blocks = nn.ModuleList()
        skip_widths = [widths[0]]
        for level, width in enumerate(widths):
            chain = [widths[max(0, level - 1)]] + [width] * layers_per_block
            cross = down_block_types[level].startswith("CrossAttn")
            block = DownBlock(list(pairwise(chain)), heads[level] if cross else None, *shared)
            skip_widths += [width] * layers_per_block
            if level < levels - 1:
                block.downsamplers = nn.ModuleList([Resample(width, stride=2)])
                skip_widths.append(width)
            self.down_blocks.append(block)

        self.mid_block = MidBlock(widths[-1], heads[-1], *shared)

        self.up_blocks = nn.ModuleList()
        for index, level in enumerate(reversed(range(levels))):
            width = widths[level]
            chain = [widths[min(levels - 1, level + 1)]] + [width] * layers_per_block
            cross = up_block_types[index].startswith("CrossAttn")
            pairs = [(hidden + skip_widths.pop(), width) for hidden in chain]
            block = UpBlock(pairs, heads[level] if cross else None, *shared)
            if level > 0:
                block.upsamplers = nn.ModuleList([Resample(width, stride=1)])
            self.up_blocks.append(block)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Drop the official config.json's surplus keys; raises ValueError if one has a value that is not supported."""
        for name, fixed in FIXED_CONFIG.items():
            if name in config_dict and config_dict[name] != fixed:
                raise ValueError(
                    f"unet/config.json has {name} = {config_dict[name]!r}, but this U-Net computes only {fixed!r}; "
                    "use a checkpoint of the Cinemo architecture"
                )
        known = {k: v for k, v in config_dict.items() if k not in FIXED_CONFIG and k not in UNUSED_CONFIG}
        return super().extract_init_dict(known, **kwargs)

    def fuse_lora(self, *arguments: Any, **more: Any) -> None:
        """Merge adapters into the weights, as diffusers does."""
        super().fuse_lora(*arguments, **more)
        forget(self)

    def unfuse_lora(self) -> None:
        """Undo `fuse_lora`."""
        super().unfuse_lora()
        forget(self)

    def forward(
        self,
        sample: Tensor,
        timestep: int | float | Tensor,
        encoder_hidden_states: Tensor,
        image_latents: Tensor,
        motion_bucket: Tensor,
        return_dict: bool = True,
        cached_features: Tensor | None = None,
        return_features: bool = False,
        frame_numbers: Tensor | None = None,
    ) -> CinemoUNetOutput | tuple[Tensor]:
        """Predict the noise of noisy motion residuals, or whatever else the model was trained to predict.

        sample: (B, C, F, h, w) noisy residuals. timestep: one number or (B,), 0..999.
        encoder_hidden_states: (B, T, D) text features. image_latents: (B, C, 1, h, w), scaled.
        motion_bucket: (B,), the id that the checkpoint was trained on (see cinemo.checkpoint for the mapping).
        cached_features: `.features` of a call with the same text and image at a nearby timestep, the input of the last
        up block. Only the first down block and the last up block are then computed, which is not exact (DeepCache, Ma
        et al., arXiv 2312.00858). return_features: return them.
        frame_numbers: int64 (F + 1,), if these are some frames of a longer clip; the first is 0, the image's.
        Returns (B, C, F, h, w) as `.sample`.
        """
        emb = embed(self.time_embedding, timestep, self.config["block_out_channels"][0], sample)
        emb = emb + embed(self.add_embedding, motion_bucket, self.config["addition_time_embed_dim"], sample)
        clip = join(image_latents, sample)  # Algorithm 1, line 9
        numbers = torch.arange(clip.shape[2], device=clip.device) if frame_numbers is None else frame_numbers
        shared = (emb, encoder_hidden_states, frame_positions(numbers, sample.dtype))

        skips = [conv_frames(self.conv_in, clip.permute(0, 2, 3, 4, 1))]
        size = skips[0].shape[2:4]
        *ups, last = self.up_blocks
        if cached_features is None:
            for down in self.down_blocks:
                skips += down(skips[-1], *shared)
            features = self.mid_block(skips[-1], *shared)
            for up in ups:
                skips, states = skips[: -len(up.resnets)], [*skips[-len(up.resnets) :], features]
                features = up(states, skips[-1].shape[2:4], *shared)
        else:
            features = cached_features
            skips += self.down_blocks[0](skips[0], *shared, resample=False)
        skips.append(features)
        returned = features if return_features else None
        del features  # so that the last block, which empties its list, can free it
        x = last(skips, size, *shared)
        x = silu(norm_clip(self.conv_norm_out, x))
        out = conv_frames(self.conv_out, x[:, 1:]).permute(0, 4, 1, 2, 3)  # without the image's frame
        return CinemoUNetOutput(sample=out, features=returned) if return_dict else (out,)


def embed(mlp: nn.Module, value: int | float | Tensor, width: int, sample: Tensor) -> Tensor:
    """Embed one number, or one for each of the B samples: a sinusoid of `width` channels, then `mlp`; (B, D)."""
    values = torch.as_tensor(value, device=sample.device).reshape(-1).expand(sample.shape[0])
    wave = get_timestep_embedding(values, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    return mlp(wave.to(sample.dtype))  # the sinusoid is always float32, which a timestep of 981 needs


def check_config(
    widths: Sequence[int], heads: Sequence[int], groups: int, down_types: Sequence[str], up_types: Sequence[str]
) -> None:
    """Raise ValueError if a U-Net cannot be built, naming the field, its value and the remedy."""
    for name, value in (("attention_head_dim", heads), ("down_block_types", down_types), ("up_block_types", up_types)):
        if len(value) != len(widths):
            raise ValueError(f"{name} has {len(value)} entries for {len(widths)} block_out_channels; give one a level")
    for block_type in (*down_types, *up_types):
        if block_type not in ("CrossAttnDownBlock3D", "DownBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"):
            raise ValueError(
                f"block type {block_type!r} is unknown; use [CrossAttn]DownBlock3D and [CrossAttn]UpBlock3D"
            )
    for width, number in zip(widths, heads, strict=True):
        if width % groups or width % number:
            raise ValueError(
                f"block_out_channels {width} is not divisible by norm_num_groups {groups} and {number} heads; "
                "change one of them"
            )
