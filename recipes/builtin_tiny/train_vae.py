"""Stage 1: the VAE that turns 8 x 8 pixels into one latent cell.

Knows pictures, crops and the reconstruction loss. Knows nothing of motion: every picture is a still.
"""

import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from cinemo.synthetic.images import canvas
from recipes.builtin_tiny.common import Log, Training, learning_rate, load_checkpoint, pick_device, save_checkpoint

CROP = 64  # pixels: eight cells; many small crops teach more per second than few large ones
SCALES = (0.45, 0.67, 1.0)  # of a canvas: 0.45 shows a whole photo at the model's 128 x 192
WARMUP = 1_000  # samples
SAVE_SECONDS = 60.0


def make_vae(channels: tuple[int, ...] = (32, 64, 96, 128), latent_channels: int = 12) -> AutoencoderKL:
    """An untrained VAE of 8x downsampling. No attention: what it learns on crops holds at every size."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
    )


def load_pictures(count: int, device: torch.device) -> list[torch.Tensor]:
    """The first `count` canvases at each scale: a list of uint8 (count, 3, h, w)."""
    full = torch.stack([torch.tensor(canvas(i)) for i in range(count)]).permute(0, 3, 1, 2)
    resized = []
    for scale in SCALES:
        parts = [F.interpolate(p.float(), scale_factor=scale, mode="bilinear", antialias=True) for p in full.split(32)]
        resized.append(torch.cat(parts).clamp(0, 255).byte().to(device))
    return resized


def random_crops(pictures: list[torch.Tensor], batch: int, crop: int, generator: torch.Generator) -> torch.Tensor:
    """Crops with changed colours: (batch, 3, crop, crop) in [-1, 1], all of one scale."""

    def integers(high: int, n: int = batch) -> list[int]:
        return torch.randint(high, (n,), generator=generator).tolist()

    source = pictures[integers(len(pictures), 1)[0]]
    count, _, height, width = source.shape
    tops, lefts = integers(height - crop + 1), integers(width - crop + 1)
    picked = [source[i, :, y : y + crop, x : x + crop] for i, y, x in zip(integers(count), tops, lefts, strict=True)]
    pixels = torch.stack(picked).float() / 127.5 - 1
    if integers(2, 1)[0]:
        pixels = pixels.flip(-1)
    return recolour(pixels, generator)


def recolour(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mix channels, contrast and brightness per picture: few photos then show many colours. (B, 3, H, W) to itself."""
    batch = len(pixels)
    mix = torch.eye(3).repeat(batch, 1, 1)
    shuffled = torch.rand(batch, generator=generator) < 0.5
    order = torch.rand(batch, 3, generator=generator).argsort(1)
    mix[shuffled] = F.one_hot(order, 3).float()[shuffled]
    grey = torch.rand(batch, 1, 1, generator=generator) * torch.randint(2, (batch, 1, 1), generator=generator)
    mix = mix * (1 - grey) + grey / 3
    mix = mix * torch.empty(batch, 1, 1).uniform_(0.6, 1.2, generator=generator)
    shift = torch.randn(batch, 3, 1, 1, generator=generator) * 0.1
    mixed = torch.einsum("bij,bjhw->bihw", mix.to(pixels), pixels)
    return (mixed + shift.to(pixels)).clamp(-1, 1)


def random_warp(batch: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Small shifts and zooms as affine matrices (batch, 2, 3) for F.affine_grid."""
    scale = torch.empty(batch).uniform_(-0.3, 0.3, generator=generator).exp()
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = torch.empty(batch, 2).uniform_(-0.15, 0.15, generator=generator)
    return theta.to(device)


def warp(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Sample (B, C, H, W) through affine matrices (B, 2, 3), bilinear, the border repeated."""
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def reconstruction_loss(
    vae: AutoencoderKL, pixels: torch.Tensor, theta: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and mean squared error of decode(encode(pixels)).

    With theta, the latents and the target are warped alike: latents then move with the picture, so that the U-Net can
    shift a picture by shifting its latents.
    """
    posterior = vae.encode(pixels).latent_dist
    latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
    if theta is not None:
        latents, pixels = warp(latents.float(), theta), warp(pixels, theta)
    decoded = vae.decode(latents).sample.float()
    error = decoded - pixels
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
    squared = error.square().mean()
    return 4 * squared + 0.3 * error.abs().mean() + 0.2 * edges + 1e-4 * kl, squared


def train_vae(
    out: Path, minutes: float, whole: int, total: int, batch: int = 16, lr: float = 1e-3, pictures: int = 384
) -> int:
    """Train for at most `minutes` or until `total` samples were seen since the very start; returns samples seen.

    After `whole` samples the encoder stands still and the decoder alone goes on: from then on latents keep their
    meaning, and the U-Net can be trained beside it. Continues from out/vae where that exists. `pictures` is how many
    canvases it learns from.
    """
    deadline = time.monotonic() + 60 * minutes
    device = pick_device()
    torch.manual_seed(0)
    vae = make_vae().to(device, memory_format=torch.channels_last)
    training = Training(vae.named_parameters(), lr, betas=(0.9, 0.99))
    saved = load_checkpoint(out / "vae")
    if saved:
        training.restore(saved)
    if training.samples >= total:
        return training.samples
    data = load_pictures(pictures, device)
    log, last_save = Log(out / "vae.csv"), time.monotonic()
    while training.samples < total and time.monotonic() < deadline:
        generator = torch.Generator().manual_seed(training.samples)  # the same crops wherever the run was cut
        pixels = random_crops(data, batch, CROP, generator).contiguous(memory_format=torch.channels_last)
        frozen = training.samples >= whole
        vae.encoder.requires_grad_(not frozen)
        vae.quant_conv.requires_grad_(not frozen)
        theta = random_warp(batch, generator, device) if training.steps % 4 == 0 else None
        with torch.autocast(device.type, torch.bfloat16):
            loss, squared = reconstruction_loss(vae, pixels, theta)
        if frozen:
            rate = learning_rate(training.samples - whole, total - whole, lr / 2, WARMUP)
        else:
            rate = learning_rate(training.samples, whole, lr, WARMUP)
        norm = training.step(loss, rate, batch, ema_samples=whole / 20, max_norm=0.5)
        log.note(training.samples, loss=loss.item(), mse=squared.item(), norm=norm)
        if time.monotonic() - last_save > SAVE_SECONDS:
            save_checkpoint(out / "vae", training.state())
            last_save = time.monotonic()
    save_checkpoint(out / "vae", training.state(finished=training.samples >= total))
    return training.samples


def load_vae(out: Path) -> AutoencoderKL:
    """The trained VAE with averaged weights, its scaling factor set so that latents have unit variance.

    Raises ValueError when out/vae does not exist.
    """
    saved = load_checkpoint(out / "vae")
    if not saved:
        raise ValueError(f"--out {out} holds no VAE yet; run recipes/builtin_tiny/run.py first")
    vae = make_vae().eval()
    with torch.no_grad():
        for name, p in vae.named_parameters():
            p.copy_(saved[f"average.{name}"])
        pictures = torch.stack([torch.tensor(canvas(i)) for i in range(24)]).permute(0, 3, 1, 2)
        small = F.interpolate(pictures.float(), scale_factor=0.5, mode="bilinear", antialias=True) / 127.5 - 1
        deviation = vae.encode(small).latent_dist.mean.std()
    vae.register_to_config(scaling_factor=round(1 / float(deviation), 4))
    return vae.requires_grad_(False)
