"""Stage 2: the text encoder and the U-Net, trained together on residuals (Algorithm 1).

Knows the model's size, the curriculum and the objective's settings. The objective itself is cinemo.residual's.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import AutoencoderDC, DDIMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from recipes.builtin_tiny.clips import NUM_FRAMES, ClipPool
from recipes.builtin_tiny.common import Log, Training, learning_rate, load_checkpoint, pick_device, save_checkpoint
from recipes.builtin_tiny.text import WIDTH, make_text_encoder, write_tokenizer
from recipes.builtin_tiny.train_autoencoder import load_autoencoder

WARMUP = 500  # samples
SAVE_SECONDS = 120.0
LEAST_SIZE = 0.1  # of a clip's squared residuals, beside the average clip's: below, an error counts as it is
PREDICTS = "sample"
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": PREDICTS,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class Lesson:
    """A stretch of the training, until a share of all samples was seen."""

    until: float
    kinds: tuple[str, ...]  # as often as they are named
    max_strength: float  # of the motion; at 0.3 a pan moves 2.1 pixels a frame. Small ones are more frequent
    num_frames: int  # the first, and others of
    span: int  # this many first frames
    batches: int  # clips a step, in units of the hardware's batch
    drop_prompt: float = 0.0  # share of samples that see an empty prompt, for guidance
    flow_weight: float = 1.0  # of the squared error of the flow channels, beside the picture's
    text: bool = True  # whether the text encoder learns, too


# Words first: the text encoder stands still until the U-Net heeds it. Where words do not matter yet, it unlearns to
# tell them apart. What the camera does is the same in every cell, so it is found before what that does to a picture.
# Any four frames teach both for a quarter of the price of sixteen; the order of frames needs all of them.
FEW_PANS = ("pan", "pan", "zoom", "zoom", "zoom", "zoom", "still")
EQUALLY = ("pan", "pan", "zoom", "zoom", "still")
CURRICULUM = (
    Lesson(0.50, FEW_PANS, 0.5, 4, NUM_FRAMES, 2, 0.1, flow_weight=4.0, text=False),
    Lesson(1.00, EQUALLY, 0.5, NUM_FRAMES, NUM_FRAMES, 1, 0.1),
)


def make_unet(latent_channels: int, channels: tuple[int, ...] = (64, 128, 128)) -> CinemoUNet:
    """An untrained U-Net of three levels."""
    unet = CinemoUNet(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        attention_head_dim=[max(1, width // 32) for width in channels],
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
        addition_time_embed_dim=64,
        down_block_types=("CrossAttnDownBlock3D",) * len(channels),
        up_block_types=("CrossAttnUpBlock3D",) * len(channels),
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


def draw_timesteps(batch: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Timesteps of 0..count - 1, stratified over the batch: int64 (batch,).

    Half are the last: nothing but noise, so what moves where is in the words alone, as when one samples. A quarter are
    the middle one, where the second of two sampling steps is. The others are any, those of high noise more often.
    """
    level = 4 * (np.arange(batch) + rng.random(batch)) / batch
    drawn = np.where(level < 1, level**0.5 * count, np.where(level < 2, count // 2 - 1, count - 1))
    return drawn.astype(np.int64)


def train_unet(
    out: Path,
    minutes: float,
    total: int,
    base_batch: int,
    reuse: float,
    lr: float = 7e-4,
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
            pool = ClipPool(vae, tokenizer, lesson.kinds, lesson.max_strength, lesson.flow_weight, capacity)
            taught, owed = lesson.until, float(min(capacity, 64))
        owed += batch / reuse
        if owed >= min(batch, 8):  # several at once: a VAE call on few frames wastes time
            pool.add(int(owed), first_seed=training.samples * 7919)
            owed -= int(owed)
        frames = [0, *sorted(rng.choice(np.arange(1, lesson.span), lesson.num_frames - 1, replace=False).tolist())]
        data = pool.draw(batch, frames, rng)
        dropped = torch.from_numpy(rng.random(batch) < lesson.drop_prompt).to(device)
        tokens = torch.where(dropped[:, None], empty, data.tokens)
        generator = torch.Generator().manual_seed(training.samples)
        noise = torch.randn(data.latents[:, :, 1:].shape, generator=generator).to(device)
        timesteps = torch.from_numpy(draw_timesteps(batch, len(alphas), rng)).to(device)
        call = partial(unet.forward, frame_numbers=torch.tensor(frames, device=device))
        with torch.autocast(device.type, torch.bfloat16):
            text = text_encoder(tokens).last_hidden_state
            if not lesson.text:
                text = text.detach()
            per_frame = training_loss(
                call, data.latents, text, data.bucket, timesteps, noise, alphas, PREDICTS, "frames", pool.weights
            )
        # Early frames move little, but count as much: else all frames get the motion of a late one. And clips that move
        # little count more than their residuals are large: else they move too much.
        per_clip = (per_frame / pool.energy[frames[1:]]).mean(dim=1) / data.size.clamp(min=LEAST_SIZE).sqrt()
        rate = learning_rate(training.samples, total, lr, WARMUP, hold=0.8)
        norm = training.step(per_clip.mean(), rate, batch, ema_samples=total / 20)
        blind = timesteps == len(alphas) - 1
        log.note(
            training.samples,
            loss=per_clip.mean().item(),
            some_signal=per_clip[~blind].mean().item(),  # not a number where the step had none
            only_noise=per_clip[blind].mean().item(),
            norm=norm,
            clips=pool.made,
        )
        if time.monotonic() - last_save > SAVE_SECONDS:
            save_checkpoint(out / "unet", training.state())
            last_save = time.monotonic()
    save_checkpoint(out / "unet", training.state())
    return training.samples
