"""Memory of a GPU that trains the full-size U-Net (preset `base`), by ZeRO stage, GPUs, precision and checkpointing.

    python benchmarks/train_memory.py > docs/training-memory.md
    python benchmarks/train_memory.py --check     # exits 1 when the file differs

Computed from shapes, without a GPU and without the weights, in half a minute. Weights, gradients, optimizer and average
are counted as DeepSpeed's ZeRO keeps them (Rajbhandari et al. 2020, section 5) under the train job's settings;
activations are the tensors of a forward and backward pass on fake tensors.
"""

import argparse
import math
import sys
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cinemo import lora
from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet, attention
from pipelines.train.deepspeed_config import LORA_BUCKET

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
LORA_TOP = """\
Adapters of rank {rank} in all attention have {parameters:,} weights; all others are frozen. `trained` is what their
gradients, optimizer and average take. Peaks are also given as a share of full training's at the same stage.
"""
LORA_RANK = 16
LORA_ROWS = ((1, 1), (2, 1), (2, 8), (3, 1), (3, 8))  # ZeRO stage, GPUs
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

# DeepSpeed's defaults, in elements: a bucket that is reduced at once, how soon a gathered weight must be needed again
# to be kept, and a bucket that is gathered ahead.
REDUCE_BUCKET, REUSE_DISTANCE, PREFETCH_BUCKET = 500_000_000, 1_000_000_000, 50_000_000


class States(NamedTuple):
    """Bytes on one rank. The first four are held from step to step, the others for a part of each step."""

    weights: int
    gradients: int  # the sum over the gradient accumulation steps
    optimizer: int
    average: int
    buffers: int  # of communication, during a forward and backward pass
    new_gradients: int  # of one backward pass, allocated while its activations are freed
    step: int  # temporary tensors of the optimizer's step

    def peak(self, activations: int) -> int:
        """Largest number of bytes needed at once, given those of the activations."""
        held = self.weights + self.gradients + self.optimizer + self.average
        return held + max(self.buffers + max(activations, self.new_gradients), self.step)


def states(
    parameters: int,
    stage: int,
    precision: str,
    world_size: int,
    bucket: int = REDUCE_BUCKET,
    gpu: bool = True,
    frozen: int = 0,
) -> States:
    """Compute the memory of a model on each rank, beside its activations, when gradients are accumulated.

    parameters, frozen: numbers of weights that are trained, and that are not. precision: "fp32" or "bf16"; at stage 0,
    bf16 is autocast over float32 weights. bucket: DeepSpeed's reduce_bucket_size, in elements. gpu: whether Adam's step
    is computed for all weights at once.
    """
    low = 2 if precision == "bf16" and stage > 0 else 4  # bytes of a weight as the U-Net computes with it
    share, all_weights = math.ceil(parameters / world_size), parameters + frozen
    if stage == 0:
        return States(4 * all_weights, 4 * parameters, 8 * parameters, 4 * parameters, 0, 0, 4 * parameters * gpu)
    # Beside the two moments, stages 1 and 2 keep a second copy of float32 weights; stage 3 updates them in place.
    optimizer = (8 if stage == 3 and low == 4 else 12) * share
    # The sum is float32. Stage 1 in float32 adds new gradients to it as they are computed, and stage 3 with each
    # bucket; otherwise they are held until the backward pass is over.
    gradients = 4 * (parameters if stage == 1 else share)
    new_gradients = {1: low * parameters if low == 2 else 0, 2: low * share, 3: 0}[stage]
    gathered = min(all_weights, REUSE_DISTANCE // 2 + PREFETCH_BUCKET) if stage == 3 else 0
    buffers = 0 if (stage, low) == (1, 2) else low * (gathered + bucket)
    # The gradients in one flat tensor, and the square root of the second moments, of which a CPU briefly holds two.
    step = 4 * share + (4 if gpu else 8) * share
    weights = low * (math.ceil(all_weights / world_size) if stage == 3 else all_weights)
    return States(weights, gradients, optimizer, 4 * share, buffers, new_gradients, step)


class Live(TorchDispatchMode):
    """Counts the bytes of all live tensors that were made under it: `now`, and `peak`, the largest number so far."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        """known: tensors that are not counted."""
        super().__init__()
        self.held: dict[int, Any] = {id(tensor.untyped_storage()): None for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.held:
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        place, size = id(storage), storage.nbytes()

        def release(_: Any) -> None:
            del self.held[place]
            self.now -= size

        self.held[place] = weakref.ref(storage, release)
        self.now += size
        self.peak = max(self.peak, self.now)


def activations(
    unet_config: dict[str, Any],
    latents: tuple[int, ...],
    precision: str,
    checkpointing: bool,
    autocast: bool = False,
    text: tuple[int, int] = (77, 768),
    lora_rank: int = 0,
) -> int:
    """Compute the peak bytes of one forward and backward pass, beside weights and gradients.

    latents: shape (B, C, N, h, w). precision: "fp32" or "bf16", of the weights, or of autocast over float32 weights.
    text: shape (T, D) of a prompt's features. lora_rank: with a rank, only adapters of all attention are trained.
    The pass runs PyTorch's own code on fake tensors on the CPU; attention keeps no matrix of scores, as on a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    low = torch.bfloat16 if precision == "bf16" else torch.float32
    batch, channels, frames, *cells = latents
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if autocast else low)
    with torch.device("meta"):
        unet = CinemoUNet(**unet_config).train()
        if lora_rank:
            lora.add_adapter(unet, lora_rank, lora_rank, "attention")
    torch.set_default_dtype(before)
    with FakeTensorMode():
        for layer in unet.modules():
            for name, weight in layer.named_parameters(recurse=False):
                empty = torch.empty(weight.shape, dtype=weight.dtype)
                layer.register_parameter(name, torch.nn.Parameter(empty, weight.requires_grad))
        if checkpointing:
            unet.enable_gradient_checkpointing()
        weights = list(unet.parameters())
        for weight in weights:
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        dtype = weights[0].dtype
        clip, noise = torch.empty(latents), torch.empty(batch, channels, frames - 1, *cells)
        ids = torch.zeros(batch, dtype=torch.long)

        def call(*inputs: torch.Tensor) -> Any:
            return unet(*(value.to(dtype) if value.is_floating_point() else value for value in inputs))

        live = Live([*weights, *(weight.grad for weight in weights if weight.grad is not None)])
        as_on_a_gpu = patch.object(attention, "is_spelled_out", new=lambda q: False)
        with live, as_on_a_gpu, torch.autocast("cpu", low, enabled=autocast):
            training_loss(call, clip, torch.empty(batch, *text), ids, ids, noise, torch.empty(1000)).backward()
    return live.peak


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


def lora_table(parameters: int, full: Sequence[int], adapted: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a LoRA's table. parameters: weights of the U-Net.

    full, adapted: bytes of activations in full and in LoRA training, without and with checkpointing, in bf16.
    """
    share = "share of full training"
    yield f"| ZeRO | GPUs | weights | trained | peak | {share} | with checkpointing | {share} |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for stage, world in LORA_ROWS:
        whole = states(parameters, stage, "bf16", world)
        memory = states(lora_parameters(), stage, "bf16", world, LORA_BUCKET, frozen=parameters)
        trained = memory.gradients + memory.optimizer + memory.average
        cells = [str(stage), str(world), gib(memory.weights), gib(trained)]
        for ours, theirs in zip(adapted, full, strict=True):
            cells += [gib(memory.peak(ours)), f"{memory.peak(ours) / whole.peak(theirs):.2f}"]
        yield f"| {' | '.join(cells)} |"


def lora_parameters() -> int:
    """Number of weights of adapters of rank LORA_RANK in all attention of the full-size U-Net."""
    with torch.device("meta"):
        unet = CinemoUNet()
        lora.add_adapter(unet, LORA_RANK, LORA_RANK, "attention")
    return sum(math.prod(weight.shape) for weight in unet.parameters() if weight.requires_grad)


def page() -> str:
    """The text of docs/training-memory.md."""
    with torch.device("meta"):
        parameters = sum(math.prod(weight.shape) for weight in CinemoUNet().parameters())
    kinds = {"fp32": ("fp32", False), "bf16": ("bf16", False), "autocast": ("bf16", True)}
    plain = {name: activations({}, CLIP, kind, False, autocast) for name, (kind, autocast) in kinds.items()}
    checkpointed = {name: activations({}, CLIP, kind, True, autocast) for name, (kind, autocast) in kinds.items()}
    full = plain["bf16"], checkpointed["bf16"]
    adapted = [activations({}, CLIP, "bf16", checkpointing, lora_rank=LORA_RANK) for checkpointing in (False, True)]
    lines = [TOP.format(parameters=parameters)]
    for precision in ("fp32", "bf16"):
        lines += [f"## `--precision {precision}`", "", *table(precision, parameters, plain, checkpointed), ""]
    lines += [
        f"## `--lora-rank {LORA_RANK} --precision bf16`",
        "",
        LORA_TOP.format(parameters=lora_parameters(), rank=LORA_RANK),
    ]
    lines += [*lora_table(parameters, full, adapted), ""]
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
