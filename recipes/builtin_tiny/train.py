"""Train the text encoder and the U-Net on the pool (Algorithm 1); call it again to continue.

    python recipes/builtin_tiny/train.py --pool out/pool --out out/tiny --minutes 60

A stop at any moment costs at most two minutes. `--out` holds the checkpoint (files under 16 MiB) and train.csv.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.autoencoder import channels as ch
from cinemo.memory import keep_freed_memory
from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet
from recipes.builtin_tiny.common import Log, Training, learning_rate, load_checkpoint, save_checkpoint
from recipes.builtin_tiny.motions import Motion
from recipes.builtin_tiny.pool import NUM_FRAMES, Pool
from recipes.builtin_tiny.text import WIDTH, make_text_encoder, write_tokenizer

WIDTHS = (64, 96, 128)
TOTAL = 36_000  # clips
LEARNING_RATE, WARMUP = 1e-3, 400  # the latter in clips
TEXT_FROM = 0.35  # share of the clips until which the text encoder is frozen
TEXT_RATE = 0.1  # of the U-Net's learning rate
SAVE_SECONDS = 120.0
PREDICTS = "v_prediction"
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
# (motion frames, clips) of a step, and the share of steps with all frames. Few frames teach at a third of the cost.
FEW, ALL, ALL_SHARE = (3, 6), (NUM_FRAMES - 1, 2), 0.12
DROP_PROMPT = 0.1
# Share of the clips until which what moves by itself is rare: it is noise to a network that still looks for zooms and
# turns, which are seen more often.
CAMERA_FIRST = 0.35
RARE, OFTEN = 0.1, 5.0
REGIONS = 2.5
# Share of the clips that are nothing but noise: what moves where is then in picture, words and bucket alone.
ONLY_NOISE = 0.65


def channel_weights() -> Tensor:
    """Weights of the channels' squared errors: (C,)."""
    weights = torch.full((ch.CHANNELS,), 0.15)
    weights[ch.LIKENESS] = 0.02  # always 0 in residuals
    weights[ch.PACE] = 4.0
    weights[ch.CAMERA] = 2.0
    weights[ch.MOVES] = 0.6
    return weights


def make_unet() -> CinemoUNet:
    """Make an untrained U-Net of three levels."""
    unet = CinemoUNet(
        in_channels=ch.CHANNELS,
        out_channels=ch.CHANNELS,
        block_out_channels=WIDTHS,
        attention_head_dim=[max(1, width // 32) for width in WIDTHS],
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
        addition_time_embed_dim=64,
        down_block_types=("CrossAttnDownBlock3D",) * len(WIDTHS),
        up_block_types=("CrossAttnUpBlock3D",) * len(WIDTHS),
    )
    # The method initializes these with zeros to keep a pretrained image model intact. Here is none; zeros learn slowly.
    for name, module in unet.named_modules():
        if name.endswith(("attn_temp.to_out.0", "add_embedding.linear_2")):
            nn.init.xavier_uniform_(module.weight)
    return unet


def make_models() -> tuple[CLIPTokenizer, CLIPTextModel, CinemoUNet]:
    """Make tokenizer, text encoder and U-Net with their initial weights, always the same."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder) / "tokenizer")
    return tokenizer, make_text_encoder(tokenizer), make_unet()


def named_parameters(text_encoder: nn.Module, unet: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of both, by their names in the checkpoint."""
    return [
        *((f"text_encoder.{name}", p) for name, p in text_encoder.named_parameters()),
        *((f"unet.{name}", p) for name, p in unet.named_parameters()),
    ]


def load_trained(out: Path) -> tuple[CLIPTokenizer, CLIPTextModel, CinemoUNet, int]:
    """Load tokenizer, text encoder and U-Net with averaged weights, and clips seen. Raises ValueError if there is no
    checkpoint."""
    tokenizer, text_encoder, unet = make_models()
    saved = load_checkpoint(out / "checkpoint")
    if not saved:
        raise ValueError(f"--out {out} holds no checkpoint yet; run recipes/builtin_tiny/train.py first")
    with torch.no_grad():
        for name, p in named_parameters(text_encoder, unet):
            p.copy_(saved[f"average.{name}"])
    return tokenizer, text_encoder.eval(), unet.eval(), int(saved["counters"][0])


def draw_timesteps(batch: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw timesteps of 0..count - 1: int64 (batch,). A share of ONLY_NOISE is the last, which is pure noise."""
    return np.where(rng.random(batch) < ONLY_NOISE, count - 1, (count * rng.random(batch) ** 0.8).astype(np.int64))


def camera_first(motion: Motion) -> float:
    """Relative frequency of a motion at the beginning of the training."""
    kinds = {kind for kind, _ in motion.parts}
    if kinds & {"zoom", "rotate"}:
        return OFTEN
    return 1.0 if kinds <= {"pan", "still"} else RARE


def regions_then(motion: Motion) -> float:
    """How often a motion is drawn from then on: clouds and waves more often, since their places have to be learned."""
    return REGIONS if motion.region else 1.0


def train(pool: Pool, out: Path, minutes: float, total: int, follow: bool) -> int:
    """Train for at most `minutes`, or until `total` clips were seen since the first call; returns clips seen.

    follow: reload the pool every minute, because it still grows.
    """
    deadline = time.monotonic() + 60 * minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, text_encoder, unet = make_models()
    text_encoder.to(device).train()
    unet.to(device).train()
    training = Training(named_parameters(text_encoder, unet), LEARNING_RATE, (0.9, 0.99), {"text_encoder.": TEXT_RATE})
    saved = load_checkpoint(out / "checkpoint")
    if saved:
        training.restore(saved)
    alphas = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
    weights = channel_weights().to(device)
    log, last_save, last_read = Log(out / "train.csv"), time.monotonic(), time.monotonic()
    while training.samples < total and time.monotonic() < deadline:
        rng = np.random.default_rng([1, training.samples])
        emphasis = camera_first if training.samples < CAMERA_FIRST * total else regions_then
        if emphasis is not pool.emphasis:
            pool.weigh(emphasis)
        frames, batch = ALL if rng.random() < ALL_SHARE else FEW
        times = torch.from_numpy(np.sort(rng.choice(np.arange(1, NUM_FRAMES), frames, replace=False)))
        data = pool.draw(batch, times, rng)
        captions = ["" if rng.random() < DROP_PROMPT else caption for caption in data.captions]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        latents, bucket = data.latents.to(device), data.bucket.to(device)
        noise = torch.randn(latents[:, :, 1:].shape, generator=torch.Generator().manual_seed(training.samples))
        timesteps = torch.from_numpy(draw_timesteps(batch, len(alphas), rng)).to(device)
        learns = training.samples >= TEXT_FROM * total
        with torch.set_grad_enabled(learns):
            text = text_encoder(tokens).last_hidden_state
        call = partial(unet.forward, frame_numbers=torch.tensor([0, *times.tolist()], device=device))
        per_clip = training_loss(
            call, latents, text, bucket, timesteps, noise.to(device), alphas, PREDICTS, "none", weights
        )
        rate = learning_rate(training.samples, total, LEARNING_RATE, WARMUP, hold=0.5)
        norm = training.step(per_clip.mean(), rate, batch, ema_samples=total / 20, max_norm=2.0)
        blind = timesteps == len(alphas) - 1
        log.note(
            training.samples,
            some_signal=per_clip[~blind].mean().item(),  # NaN if the step had none
            only_noise=per_clip[blind].mean().item(),
            norm=norm,
            clips=len(pool),
        )
        if time.monotonic() - last_save > SAVE_SECONDS:
            save_checkpoint(out / "checkpoint", training.state())
            last_save = time.monotonic()
        if follow and time.monotonic() - last_read > 60:
            pool.reload()
            last_read = time.monotonic()
    save_checkpoint(out / "checkpoint", training.state())
    return training.samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True, help="folder written by pool.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and log")
    parser.add_argument("--minutes", type=float, required=True, help="stop after this time; the next call continues")
    parser.add_argument("--clips", type=int, default=TOTAL, help="clips in the whole training")
    parser.add_argument("--follow", action="store_true", help="reload the pool while pool.py still writes to it")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    seen = train(Pool(arguments.pool), arguments.out, arguments.minutes, arguments.clips, arguments.follow)
    print(f"{seen} of {arguments.clips} clips", flush=True)


if __name__ == "__main__":
    main()
