"""Forward pass of the full-size U-Net in bfloat16 against a plain module structure, in bfloat16 and float32.

    OMP_NUM_THREADS=2 python benchmarks/unet.py [--repeats 5] [--frames 15] [--height 20] [--width 32]

911 M parameters with random weights, 15 + 1 frames of 20 x 32 cells, against benchmarks/plain_unet.py with the same
weights. Prints the errors of both bfloat16 results against float32, the processor's instructions for bfloat16, and the
share of the machine's bfloat16 matrix-product rate that each reaches. On a processor with AMX, exits 1 below 1.5 times
the speed of the plain structure in bfloat16, or 4.5 times in float32; without AMX the plain structure reaches most of
that rate, too. Takes about three minutes.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from plain_unet import PlainUNet
from timing import compare, ratio, report
from torch.utils.flop_counter import FlopCounterMode

from cinemo.unet import CinemoUNet

BOUND_BF16, BOUND_FLOAT32 = 1.5, 4.5


def random_unet() -> CinemoUNet:
    """Full-size U-Net, float32, with random weights that keep signals near 1, as trained ones do."""
    with torch.device("meta"):
        unet = CinemoUNet()
    unet.to_empty(device="cpu").requires_grad_(False).eval()
    torch.manual_seed(0)
    for name, weight in [*unet.named_parameters(), *unet.named_buffers()]:
        if weight.ndim > 1:
            weight.normal_(std=(weight[0].numel()) ** -0.5)
        else:
            weight.fill_(float("norm" in name and name.endswith("weight")))
    return unet


def plain_like(unet: CinemoUNet) -> PlainUNet:
    """The plain U-Net with the same weights, sharing their memory."""
    with torch.device("meta"):
        plain = PlainUNet(unet.config)
    plain.load_state_dict(unet.state_dict(), strict=False, assign=True)
    return plain.requires_grad_(False).eval()


def matmul_rate() -> float:
    """FLOP/s of this machine's bfloat16 matrix product at a favourable size."""
    a, b = torch.randn(4096, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    seconds = compare({"matmul": lambda: a @ b}, repeats=9)["matmul"]
    return 2 * 4096**3 / min(seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=15)
    parser.add_argument("--height", type=int, default=20)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args(arguments)

    unet = random_unet()
    plain = plain_like(unet)
    fast = random_unet().bfloat16()
    plain_fast = plain_like(fast)
    shape = (1, 4, options.frames, options.height, options.width)
    inputs = torch.randn(shape), 500, torch.randn(1, 77, 768), torch.randn(1, 4, 1, *shape[-2:]), torch.tensor([10.0])
    halves = tuple(x.bfloat16() if isinstance(x, torch.Tensor) and x.ndim > 1 else x for x in inputs)

    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            expected = unet(*inputs).sample
        floats = counter.get_total_flops()
        del unet

        def distance(out: torch.Tensor) -> float:
            return ((out.float() - expected).norm() / expected.norm()).item()

        far = distance(fast(*halves).sample), distance(plain_fast(*halves))
        seconds = compare(
            {
                "plain float32": lambda: plain(*inputs),
                "plain bfloat16": lambda: plain_fast(*halves),
                "ours bfloat16": lambda: fast(*halves).sample,
            },
            options.repeats,
        )
    rate = matmul_rate()
    amx = torch.cpu._is_amx_tile_supported()
    against = ratio(seconds["plain bfloat16"], seconds["ours bfloat16"])
    shares = {name: floats / rate / sorted(times)[len(times) // 2] for name, times in seconds.items()}
    code = report(
        "full-size U-Net, bfloat16 against the plain structure in bfloat16",
        against,
        passed=against.ratio >= BOUND_BF16 or not amx,
        bound=BOUND_BF16,
        seconds=sorted(seconds["ours bfloat16"])[options.repeats // 2],
        tflop=floats / 1e12,
        matmul_tflops=rate / 1e12,
        share_of_matmul_rate=shares["ours bfloat16"],
        plain_share=shares["plain bfloat16"],
        error=far[0],
        plain_error=far[1],
        instructions=f"{torch.backends.cpu.get_cpu_capability()}{', AMX' if amx else ''}",
    )
    against = ratio(seconds["plain float32"], seconds["ours bfloat16"])
    return code | report(
        "full-size U-Net, bfloat16 against the plain structure in float32",
        against,
        passed=against.ratio >= BOUND_FLOAT32 or not amx,
        bound=BOUND_FLOAT32,
        plain_seconds=sorted(seconds["plain float32"])[options.repeats // 2],
    )


if __name__ == "__main__":
    sys.exit(main())
