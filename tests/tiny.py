"""The smallest U-Net that has every kind of block, for tests that need one and do not care which."""

from typing import Any

TINY: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "attention_head_dim": 1,
    "layers_per_block": 1,
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "addition_time_embed_dim": 32,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
