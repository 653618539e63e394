"""Memory of a GPU that trains the full-size U-Net (preset `base`), by ZeRO stage, GPUs, precision and checkpointing.

    python benchmarks/train_memory.py > docs/training-memory.md
    python benchmarks/train_memory.py --check     # exits 1 when the file differs

Computed from shapes, without a GPU and without the weights (pipelines/train/memory.py), in half a minute.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cinemo.unet import CinemoUNet
from pipelines.train.memory import activations, states

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "training-memory.md"
CLIP = (1, 4, 16, 40, 64)  # a micro batch of one clip of 16 frames, 320 x 512 pixels
GPUS = (1, 8, 64)
TOP = """\
# Memory of training

What `--preset base` needs of each GPU, in GiB: {parameters:,} parameters, 16 frames of 320 x 512 pixels, one clip at a
time, with the average of the weights. Printed by `python benchmarks/train_memory.py`; a test compares a measured run
of a smaller U-Net with the same arithmetic, to 15 %.
"""
BOTTOM = """\
## How to read it

- `weights` to `average` stay from step to step. `gradients` are the float32 sum over the rounds of a step; `optimizer`
  is Adam's two moments and ZeRO's float32 master copy of the weights (none at stage 0, nor at stage 3 in fp32);
  `average` is the moving average that is exported.
- `buffers` are DeepSpeed's at its defaults: the bucket that gradients are reduced in (`reduce_bucket_size`) and, at
  stage 3, weights gathered from other GPUs (`stage3_max_reuse_distance`). A `--deepspeed` file can make both smaller.
- `peak` is what stays, and the largest of what comes and goes: activations and buffers; the gradients of a round and
  buffers; or what the optimizer's step needs. `with checkpointing` is the same with `--gradient-checkpointing`.
- Activations are the largest sum of live tensors in a forward and backward pass of the real U-Net, run without their
  contents; twice the `--micro-batch` is twice the activations.
- Not counted: the CUDA context, NCCL, workspaces of libraries, and what the allocator cannot use. Leave room for them.
"""


def gib(size: int) -> str:
    return f"{size / 2**30:.1f}"


def table(precision: str, parameters: int, plain: dict[str, int], checkpointed: dict[str, int]) -> Iterator[str]:
    """Yield the lines of one precision's table; activations in bytes, by precision or "autocast"."""
    yield "| ZeRO | GPUs | weights | gradients | optimizer | average | buffers | peak | with checkpointing |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for stage in range(4):
        kind = "autocast" if (stage, precision) == (0, "bf16") else precision
        for world in GPUS if stage else GPUS[:1]:  # stage 0 shards nothing
            memory = states(parameters, stage, precision, world)
            parts = [gib(size) for size in memory[:5]]
            peaks = [gib(memory.peak(size[kind])) for size in (plain, checkpointed)]
            yield f"| {' | '.join([str(stage), str(world) if stage else 'any', *parts, *peaks])} |"


def page() -> str:
    """The text of docs/training-memory.md."""
    with torch.device("meta"):
        parameters = sum(math.prod(weight.shape) for weight in CinemoUNet().parameters())
    kinds = {"fp32": ("fp32", False), "bf16": ("bf16", False), "autocast": ("bf16", True)}
    plain = {name: activations({}, CLIP, kind, False, autocast) for name, (kind, autocast) in kinds.items()}
    checkpointed = {name: activations({}, CLIP, kind, True, autocast) for name, (kind, autocast) in kinds.items()}
    lines = [TOP.format(parameters=parameters)]
    for precision in ("fp32", "bf16"):
        lines += [f"## `--precision {precision}`", "", *table(precision, parameters, plain, checkpointed), ""]
    lines += ["## Activations", "", "| | fp32 | bf16 | bf16, ZeRO 0 (autocast) |", "| --- | --- | --- | --- |"]
    for name, sizes in (("plain", plain), ("`--gradient-checkpointing`", checkpointed)):
        lines.append(f"| {' | '.join([name, *map(gib, sizes.values())])} |")
    return "\n".join([*lines, "", BOTTOM])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/training-memory.md")
    options = parser.parse_args(arguments)
    text = page()
    if not options.check:
        print(text, end="")
        return 0
    same = PAGE.exists() and PAGE.read_text() == text
    print(f"{PAGE.relative_to(ROOT)} {'is' if same else 'is not'} what this command prints")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
