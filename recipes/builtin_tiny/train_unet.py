"""Stage 2: the text encoder and the U-Net, trained together on residuals (Algorithm 1).

Knows the model's size, the curriculum and the objective's settings. The objective itself is cinemo.residual's.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderDC, DDIMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from recipes.builtin_tiny.clips import ClipPool
from recipes.builtin_tiny.common import Log, Training, learning_rate, load_checkpoint, pick_device, save_checkpoint
from recipes.builtin_tiny.text import WIDTH, make_text_encoder, write_tokenizer
from recipes.builtin_tiny.train_autoencoder import load_autoencoder

WARMUP = 500  # samples
SAVE_SECONDS = 120.0
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
}


@dataclass(frozen=True)
class Lesson:
    """A stretch of the training, until a share of all samples was seen."""

    until: float
    kinds: tuple[str, ...]
    cells: tuple[int, int]  # of the latents, h and w
    num_frames: int
    frame_step: float  # time between frames; the bucket is that of the frames that are seen
    batches: int  # clips a step, in units of the hardware's batch
    drop_prompt: float  # share of samples that see an empty prompt, for guidance
    level_power: float  # 1 draws all noise levels alike; above 1, low ones more often


# Two frames first: what "left" does to a picture is then a matter of that picture, and a step costs an eighth. From
# there to more frames, and at last to the whole clip. Small windows do for most of it, because motion is local.
# Direction is decided at high noise and detail at low noise, so that low noise comes last.
CURRICULUM = (
    Lesson(0.40, ("pan",), (8, 12), 2, 2.0, 4, 0.0, 1.0),
    Lesson(0.52, ("pan", "zoom"), (8, 12), 4, 2.0, 2, 0.0, 1.0),
    Lesson(0.62, ("pan", "zoom"), (8, 12), 8, 1.0, 2, 0.0, 1.0),
    Lesson(0.99, ("pan", "zoom", "still"), (8, 12), 16, 1.0, 1, 0.1, 1.6),
    Lesson(1.00, ("pan", "zoom", "still"), (16, 24), 16, 1.0, 1, 0.1, 1.6),
)


def make_unet(latent_channels: int, channels: tuple[int, ...] = (64, 128, 128)) -> CinemoUNet:
    """An untrained U-Net of three levels. The finest has no attention: there it costs the most and gives the least."""
    unet = CinemoUNet(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        attention_head_dim=[max(1, width // 32) for width in channels],
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
        addition_time_embed_dim=64,
        down_block_types=("DownBlock3D", *("CrossAttnDownBlock3D",) * (len(channels) - 1)),
        up_block_types=(*("CrossAttnUpBlock3D",) * (len(channels) - 1), "UpBlock3D"),
    )
    # The method starts these at zero to keep an image model's knowledge. There is none here, and zeros learn slowly.
    for name, module in unet.named_modules():
        if name.endswith(("attn_temp.to_out.0", "add_embedding.linear_2")):
            nn.init.xavier_uniform_(module.weight)
    return unet


def make_models(vae: AutoencoderDC) -> tuple[CLIPTokenizer, CLIPTextModel, CinemoUNet]:
    """Tokenizer, text encoder and U-Net at their start, the same every time."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder) / "tokenizer")
    return tokenizer, make_text_encoder(tokenizer), make_unet(vae.config.latent_channels)


def named_parameters(text_encoder: nn.Module, unet: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of both, as they are called in the checkpoint."""
    return [
        *((f"text_encoder.{name}", p) for name, p in text_encoder.named_parameters()),
        *((f"unet.{name}", p) for name, p in unet.named_parameters()),
    ]


def load_trained(out: Path) -> tuple[AutoencoderDC, CLIPTokenizer, CLIPTextModel, CinemoUNet, int]:
    """VAE, tokenizer, text encoder, U-Net with averaged weights, and samples seen. Raises ValueError without any."""
    vae = load_autoencoder(out)
    tokenizer, text_encoder, unet = make_models(vae)
    saved = load_checkpoint(out / "unet")
    if not saved:
        raise ValueError(f"--out {out} holds no U-Net yet; run recipes/builtin_tiny/run.py first")
    with torch.no_grad():
        for name, p in named_parameters(text_encoder, unet):
            p.copy_(saved[f"average.{name}"])
    return vae.eval(), tokenizer, text_encoder.eval(), unet.eval(), int(saved["counters"][0])


def train_unet(
    out: Path,
    minutes: float,
    total: int,
    base_batch: int,
    reuse: float,
    lr: float = 1e-3,
    curriculum: tuple[Lesson, ...] = CURRICULUM,
    capacity: int = 2048,
) -> int:
    """Train for at most `minutes` or until `total` samples were seen since the very start; returns samples seen.

    Continues from out/unet where that exists; needs out/autoencoder. base_batch: clips a step in the last
    lesson, more in the earlier ones. reuse: how often a clip is used on average.
    """
    deadline = time.monotonic() + 60 * minutes
    device = pick_device()
    vae = load_autoencoder(out).to(device, memory_format=torch.channels_last)
    tokenizer, text_encoder, unet = make_models(vae)
    text_encoder.to(device).train()
    unet.to(device).train()
    training = Training(named_parameters(text_encoder, unet), lr, betas=(0.9, 0.99))
    saved = load_checkpoint(out / "unet")
    if saved:
        training.restore(saved)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    empty = torch.tensor(tokenizer("", padding="max_length").input_ids, device=device)
    pool: ClipPool | None = None
    taught, owed = -1.0, 0.0
    log, last_save = Log(out / "unet.csv"), time.monotonic()
    while training.samples < total and time.monotonic() < deadline:
        lesson = next(lesson for lesson in curriculum if training.samples < lesson.until * total)
        rng = np.random.default_rng([1, training.samples])
        batch = base_batch * lesson.batches
        if pool is None or lesson.until != taught:
            shape = (lesson.cells, lesson.num_frames, lesson.frame_step)
            pool = ClipPool(vae, tokenizer, lesson.kinds, *shape, capacity)
            taught, owed = lesson.until, float(min(capacity, 8 * batch))
        owed += batch / reuse
        if owed >= min(batch, 8):  # several at once: a VAE call on few frames wastes time
            pool.add(int(owed), first_seed=training.samples * 7919)
            owed -= int(owed)
        data = pool.draw(batch, rng)
        dropped = torch.from_numpy(rng.random(batch) < lesson.drop_prompt).to(device)
        tokens = torch.where(dropped[:, None], empty, data.tokens)
        generator = torch.Generator().manual_seed(training.samples)
        noise = torch.randn(data.latents[:, :, 1:].shape, generator=generator).to(device)
        # Stratified over the batch: every batch sees every noise level, which steadies the gradient.
        level = (np.arange(batch) + rng.random(batch)) / batch
        timesteps = torch.from_numpy((level**lesson.level_power * len(alphas)).astype(np.int64)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            text = text_encoder(tokens).last_hidden_state
            per_clip = training_loss(
                unet, data.latents, text, data.bucket, timesteps, noise, alphas, "v_prediction", reduction="none"
            )
        rate = learning_rate(training.samples, total, lr, WARMUP, hold=0.8)
        norm = training.step(per_clip.mean(), rate, batch, ema_samples=total / 20)
        half = batch // 2
        log.note(
            training.samples,
            loss=per_clip.mean().item(),
            low_noise=per_clip[:half].mean().item(),
            high_noise=per_clip[half:].mean().item(),
            norm=norm,
            clips=pool.made,
        )
        if time.monotonic() - last_save > SAVE_SECONDS:
            save_checkpoint(out / "unet", training.state())
            last_save = time.monotonic()
    save_checkpoint(out / "unet", training.state())
    return training.samples
