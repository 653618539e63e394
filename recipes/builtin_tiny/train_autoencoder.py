"""Stage 1: the autoencoder that turns 8 x 8 pixels into one latent cell.

Knows pictures, crops, principal components and the reconstruction loss. Knows nothing of motion: every picture is a
still. The encoder is linear and is computed, not trained: the 40 directions in which 8 x 8 blocks differ the most. So
latents of a difference are the difference of latents, and the U-Net can be trained before the decoder is.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from torch import Tensor, nn

from cinemo.synthetic.images import canvas
from recipes.builtin_tiny.common import Log, Training, learning_rate, load_checkpoint, pick_device, save_checkpoint

CROP = 64  # pixels: eight cells; many small crops teach more per second than few large ones
SCALES = (0.45, 0.67, 1.0)  # of a canvas: 0.45 shows a whole photo at the model's 128 x 192
WARMUP = 2_000  # samples
SAVE_SECONDS = 60.0
PICTURES = 384  # canvases that it learns from
BLOCK = 3 * 8 * 8  # numbers of a block of pixels
# The last ones, which are zero in every picture: in them the U-Net says how the camera moves. They are not decoded.
FLOW_CHANNELS = 4
CONSTANT = 40.0  # beside pixels of -1..1 it is all that the decoder's last norm sees, which so does not change them
# Of scaled latents. So large that the photo shows through the noise that is laid over it (Algorithm 1, line 9).
DEVIATION = 16.0
NOISE = 1.6  # deviation that latents get in training, at most: the U-Net's are not exact either


def make_autoencoder(latent_channels: int = 40 + FLOW_CHANNELS) -> AutoencoderDC:
    """An autoencoder of 8x downsampling by pixel shuffles, with empty weights; see start_linear."""
    return AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=(12, 12, 48, BLOCK),
        decoder_block_out_channels=(36, 36, 48, BLOCK),
        encoder_layers_per_block=(0, 1, 1, 0),
        decoder_layers_per_block=(0, 2, 2, 2),
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


def to_blocks(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels as the encoder orders them before its last layer: (B, 3, H, W) -> (B, 192, H/8, W/8)."""
    blocks = encoder.conv_in(pixels)
    for block in encoder.down_blocks:
        blocks = block(blocks)
    return blocks


@torch.no_grad()
def start_linear(autoencoder: AutoencoderDC, pictures: list[Tensor]) -> None:
    """Set weights with which it keeps the principal components of the pictures' blocks, and nothing else.

    pictures: as load_pictures has them; the photos among them count, at the two smaller scales. Components are not
    brought to one deviation: an error of a latent is then as large an error of pixels, whichever the component, and
    what the U-Net learns first is what one sees first.
    """
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.zero_()
        if type(module).__name__ == "ResBlock":  # adds nothing yet
            module.norm.weight.zero_()
            module.norm.bias.zero_()
        elif type(module).__name__ in ("DCDownBlock2d", "DCUpBlock2d"):  # only reorders pixels
            module.conv.weight.zero_()
    encoder.conv_in.conv.weight[:, :, 1, 1] = torch.eye(3)

    samples = []
    for picture in pictures[:2]:
        whole = picture[::2, :, : picture.shape[2] // 8 * 8, : picture.shape[3] // 8 * 8].cpu()
        for part in whole.split(16):
            found = to_blocks(encoder, part.float() / 127.5 - 1)
            samples.append(found.transpose(0, 1).flatten(1).T)
    blocks = torch.cat(samples).double()
    vectors = torch.linalg.eigh(torch.cov(blocks.T)).eigenvectors
    channels = autoencoder.config.latent_channels - FLOW_CHANNELS
    basis = vectors.flip(1)[:, :channels].float()
    middle = blocks.mean(0).float()

    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[:channels, :, 1, 1] = basis.T
    encoder.conv_out.bias[:channels] = -(basis.T @ middle)
    decoder.conv_in.weight.zero_()
    decoder.conv_in.weight[:, :channels, 1, 1] = basis
    decoder.conv_in.bias.copy_(middle)
    # From 48 channels to pixels, minus pixels, a constant, and rest: ReLU then loses nothing.
    up = decoder.up_blocks[1][0].conv
    width = decoder.norm_out.weight.shape[0]
    wanted = torch.zeros(4 * width, 48)
    wanted[:48], wanted[48:96] = torch.eye(48), -torch.eye(48)
    up.weight[:, :, 1, 1] = wanted - torch.eye(48).repeat_interleave(4 * width // 48, dim=0)  # its shortcut
    up.bias[96:100] = CONSTANT
    decoder.norm_out.weight.fill_(CONSTANT / width**0.5)
    decoder.norm_out.bias.zero_()
    decoder.conv_out.conv.weight[:, :12, 1, 1] = torch.eye(12)
    decoder.conv_out.conv.weight[:, 12:24, 1, 1] = -torch.eye(12)
    deviation = torch.cat([part @ basis for part in samples]).std()
    autoencoder.register_to_config(scaling_factor=round(DEVIATION / float(deviation), 4))


def load_pictures(count: int, device: torch.device) -> list[Tensor]:
    """The first `count` canvases at each scale: a list of uint8 (count, 3, h, w)."""
    full = torch.stack([torch.tensor(canvas(i)) for i in range(count)]).permute(0, 3, 1, 2)
    resized = []
    for scale in SCALES:
        parts = [F.interpolate(p.float(), scale_factor=scale, mode="bilinear", antialias=True) for p in full.split(32)]
        resized.append(torch.cat(parts).clamp(0, 255).byte().to(device))
    return resized


def random_crops(pictures: list[Tensor], batch: int, crop: int, generator: torch.Generator) -> Tensor:
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


def recolour(pixels: Tensor, generator: torch.Generator) -> Tensor:
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


def load_start(out: Path, pictures: list[Tensor] | None = None) -> AutoencoderDC:
    """The autoencoder at its linear start, computed once for an `out` and kept there.

    Kept, because two machines may find the components in other directions. pictures: as in start_linear.
    """
    autoencoder = make_autoencoder().eval()
    saved = load_checkpoint(out / "start")
    if saved:
        autoencoder.register_to_config(scaling_factor=round(float(saved.pop("scaling_factor")), 4))
        autoencoder.load_state_dict(saved)
    else:
        start_linear(autoencoder, load_pictures(PICTURES, torch.device("cpu")) if pictures is None else pictures)
        factor = torch.tensor(autoencoder.config.scaling_factor)
        save_checkpoint(out / "start", {**autoencoder.state_dict(), "scaling_factor": factor})
    return autoencoder


Draw = Callable[
    [torch.Generator], tuple[Tensor, Tensor]
]  # latents as the decoder gets them, and the pixels they are of


def still_crops(autoencoder: AutoencoderDC, pictures: list[Tensor], batch: int) -> Draw:
    """Crops of still pictures; every other one's latents are exact, the others' a little wrong."""
    device, scale = autoencoder.device, autoencoder.config.scaling_factor

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = random_crops(pictures, batch, CROP, generator).contiguous(memory_format=torch.channels_last)
        level = NOISE / scale * torch.rand(batch, 1, 1, 1, generator=generator)
        level = level * torch.randint(2, level.shape, generator=generator)
        with torch.no_grad():
            latents = autoencoder.encode(pixels).latent
        noise = torch.randn(latents.shape, generator=generator) * level
        return latents + noise.to(device), pixels

    return draw


def train_decoder(
    folder: Path, autoencoder: AutoencoderDC, draw: Draw, minutes: float, total: int, batch: int, lr: float
) -> int:
    """Train the decoder for at most `minutes` or until `total` samples since the very start; returns samples seen.

    Continues from `folder` where that exists, and logs to a file of its name. batch: samples that `draw` gives.
    """
    deadline = time.monotonic() + 60 * minutes
    training = Training(autoencoder.named_parameters(), lr, betas=(0.9, 0.99))
    saved = load_checkpoint(folder)
    if saved:
        training.restore(saved)
    autoencoder.encoder.requires_grad_(False)
    log, last_save = Log(folder.with_suffix(".csv")), time.monotonic()
    while training.samples < total and time.monotonic() < deadline:
        generator = torch.Generator().manual_seed(training.samples)  # the same samples wherever the run was cut
        latents, pixels = draw(generator)
        error = autoencoder.decode(latents).sample - pixels
        squared = error.square().mean()
        rate = learning_rate(training.samples, total, lr, WARMUP, hold=0.5)
        norm = training.step(4 * squared + 0.3 * error.abs().mean(), rate, batch, ema_samples=total / 20, max_norm=0.5)
        log.note(training.samples, mse=squared.item(), norm=norm)
        if time.monotonic() - last_save > SAVE_SECONDS:
            save_checkpoint(folder, training.state())
            last_save = time.monotonic()
    save_checkpoint(folder, training.state(finished=training.samples >= total))
    return training.samples


def samples_seen(folder: Path) -> int:
    """By a checkpoint of this stage; 0 where there is none."""
    saved = load_checkpoint(folder)
    return int(saved["counters"][0]) if saved else 0


def train_autoencoder(
    out: Path, minutes: float, total: int, batch: int = 16, lr: float = 1e-4, pictures: int = PICTURES
) -> int:
    """Train the decoder on stills: train_decoder, from the linear start. pictures: how many canvases it learns from."""
    folder = out / "autoencoder"
    if samples_seen(folder) >= total:
        return samples_seen(folder)
    device = pick_device()
    torch.manual_seed(0)
    data = load_pictures(pictures, device)
    autoencoder = load_start(out, data).to(device, memory_format=torch.channels_last)
    return train_decoder(folder, autoencoder, still_crops(autoencoder, data, batch), minutes, total, batch, lr)


def load_autoencoder(out: Path) -> AutoencoderDC:
    """The autoencoder with averaged weights; where none was trained yet, its linear start, which has the same encoder.

    So the U-Net can be trained before the decoder, or beside it. The decoder is the last stage's that there is.
    """
    autoencoder = load_start(out)
    saved = load_checkpoint(out / "decoder") or load_checkpoint(out / "autoencoder")
    with torch.no_grad():
        for name, p in autoencoder.decoder.named_parameters(prefix="decoder"):
            if saved:
                p.copy_(saved[f"average.{name}"])
    return autoencoder.requires_grad_(False)
