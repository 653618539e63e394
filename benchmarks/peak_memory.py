"""Peak memory of a forward pass of the full-size U-Net in float32, and of the VAE's decoder by number of frames.

    OMP_NUM_THREADS=2 python benchmarks/peak_memory.py

Each runs in its own process. The U-Net: 15 + 1 frames of 40 x 64 cells, random weights (3.64 GB); exits 1 above 4.5 GB
(official code: 5.7). The decoder: the golden one, 320 x 512 pixels, 16 and 64 frames; exits 1 when four times the
frames take more than 1.1 times the memory, not counting the frames themselves. Takes about two minutes.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from timing import Ratio, report

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "checkpoint"
UNET_GB, FLAT = 4.5, 1.1
SIZE = (320, 512)


def forward() -> int:
    """Peak bytes of this process after one forward pass."""
    import torch
    from unet import random_unet

    from cinemo.memory import give_back_freed_memory, peak_rss

    give_back_freed_memory()  # as cinemo animate does for a model of this size
    unet = random_unet()
    with torch.no_grad():
        unet(torch.randn(1, 4, 15, 40, 64), 500, torch.randn(1, 77, 768), torch.randn(1, 4, 1, 40, 64), torch.ones(1))
    return peak_rss()


def decode(frames: int) -> int:
    """Peak bytes of this process after decoding, without the decoded frames."""
    import torch

    from cinemo import checkpoint
    from cinemo.latents import decode_latents
    from cinemo.memory import peak_rss

    vae = checkpoint.load_vae(GOLDEN, "frame")
    factor = checkpoint.vae_factor(vae.config)
    latents = torch.randn(1, vae.config.latent_channels, frames, SIZE[0] // factor, SIZE[1] // factor)
    return peak_rss() - decode_latents(vae, latents).nbytes


def measured(*what: str) -> int:
    """Run this file in a new process; returns the bytes that it prints."""
    done = subprocess.run([sys.executable, __file__, *what], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="?", choices=["forward", "decode"], help=argparse.SUPPRESS)
    parser.add_argument("frames", nargs="?", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        print(forward() if options.part == "forward" else decode(options.frames))
        return 0
    unet = measured("forward") / 1e9
    code = report(
        "peak memory of a full-size float32 forward, 4.5 GB against it",
        Ratio(*[UNET_GB / unet] * 3),
        passed=unet <= UNET_GB,
        gigabytes=unet,
    )
    few, many = measured("decode", "16") / 1e9, measured("decode", "64") / 1e9
    return code | report(
        "peak memory of decoding 64 frames against 16",
        Ratio(*[many / few] * 3),
        passed=many <= FLAT * few,
        bound=FLAT,
        gigabytes=many,
    )


if __name__ == "__main__":
    sys.exit(main())
