"""Random-weight versions of other projects' pipelines, small enough to run here, in the format of the real ones."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLTemporalDecoder,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    PIAPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def vision(width: int, side: int = 32) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=width, projection_dim=width, num_hidden_layers=1, num_attention_heads=2, image_size=side,
        intermediate_size=16, patch_size=side // 4,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def text(width: int, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def frame_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=(DOWN, DOWN), up_block_types=(UP, UP), latent_channels=4,
        norm_num_groups=2, sample_size=32,
    )  # fmt: skip


def make(kind: str, folder: Path, tokens: Path) -> Path:
    """Write a small pipeline of a kind ("svd", "i2vgen-xl", "pia", "cogvideox-i2v") into the folder; returns it.

    tokens: a directory with a CLIP tokenizer.
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tokens)
    images = CLIPImageProcessorPil(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32})
    if kind == "svd":
        pipe = svd(images)
    elif kind == "i2vgen-xl":
        pipe = i2vgen_xl(tokenizer, images)
    elif kind == "pia":
        pipe = pia(tokenizer)
    else:
        pipe = cogvideox()
    pipe.save_pretrained(folder)
    return folder


def svd(images: CLIPImageProcessorPil) -> StableVideoDiffusionPipeline:
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=8, out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32, num_attention_heads=8, projection_class_embeddings_input_dim=96,
        addition_time_embed_dim=32,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32), down_block_types=(DOWN,) * 3, latent_channels=4
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_spacing="leading", timestep_type="continuous",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, interpolation_type="linear",
    )  # fmt: skip
    return StableVideoDiffusionPipeline(vae, vision(32, 224), unet, scheduler, images)


def i2vgen_xl(tokenizer: CLIPTokenizer, images: CLIPImageProcessorPil) -> I2VGenXLPipeline:
    unet = I2VGenXLUNet(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=32,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=4, norm_num_groups=2,
        attention_head_dim=4, num_attention_heads=None,
    )  # fmt: skip
    return I2VGenXLPipeline(
        frame_vae(), text(4, tokenizer), tokenizer, vision(4), images, unet, DDIMScheduler(clip_sample=False)
    )


def pia(tokenizer: CLIPTokenizer) -> PIAPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, norm_num_groups=2, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=2,
    )  # fmt: skip
    adapter = MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2,
        motion_num_attention_heads=2, conv_in_channels=9,
    )  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False)
    return PIAPipeline(frame_vae(), text(8, tokenizer), tokenizer, unet, scheduler, adapter)


def cogvideox() -> CogVideoXImageToVideoPipeline:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=226, use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    encoder = T5Config(d_model=32, d_ff=37, d_kv=8, num_layers=1, num_heads=4, vocab_size=400)
    return CogVideoXImageToVideoPipeline(
        T5TokenizerFast(), T5EncoderModel(encoder), vae, transformer, CogVideoXDDIMScheduler()
    )
