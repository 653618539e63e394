"""What a training step needs of each GPU's memory, by part: from the shapes alone, before there is a GPU.

Weights, gradients, optimizer and average are counted as DeepSpeed's ZeRO keeps them (Rajbhandari et al. 2020, section
5) under this job's settings; activations are the tensors of a forward and backward pass, run without their contents.
Knows bytes. Knows nothing of clips, nor of what the libraries below PyTorch take for themselves.
"""

import math
import weakref
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cinemo.residual import training_loss
from cinemo.unet import CinemoUNet, attention

# DeepSpeed's defaults, in elements: what is reduced at once, and how far ahead a gathered weight must be needed again.
REDUCE_BUCKET, REUSE_DISTANCE, PREFETCH_BUCKET = 500_000_000, 1_000_000_000, 50_000_000


class States(NamedTuple):
    """Bytes on one rank. The first four stay from step to step; of the last three, one at a time is needed."""

    weights: int
    gradients: int  # the sum of the rounds of a step
    optimizer: int
    average: int
    buffers: int  # of communication, while a round is computed
    fresh: int  # gradients of a round, which come as its activations go
    step: int  # what the optimizer's step makes and drops

    def peak(self, activations: int) -> int:
        """The most that is needed at once, with these bytes of activations."""
        stay = self.weights + self.gradients + self.optimizer + self.average
        return stay + max(self.buffers + max(activations, self.fresh), self.step)


def states(
    parameters: int, stage: int, precision: str, world: int, bucket: int = REDUCE_BUCKET, gpu: bool = True
) -> States:
    """What a model needs on each of `world` ranks, beside its activations, when a step has several rounds.

    precision: "fp32" or "bf16"; at stage 0, bf16 is autocast over float32 weights. bucket: DeepSpeed's
    reduce_bucket_size, in elements. gpu: Adam's step is then computed for all weights at once.
    """
    low = 2 if precision == "bf16" and stage > 0 else 4  # bytes of a weight as the U-Net computes with it
    share = math.ceil(parameters / world)
    if stage == 0:
        return States(4 * parameters, 4 * parameters, 8 * parameters, 4 * parameters, 0, 0, 4 * parameters * gpu)
    # Beside the two moments, stages 1 and 2 keep a master copy of float32 weights too; stage 3 updates these in place.
    optimizer = (8 if stage == 3 and low == 4 else 12) * share
    # The sum is float32. A round of stage 1 in float32 is added to it as it is computed, and one of stage 3 with each
    # bucket; others need a place until the round is over.
    gradients = 4 * (parameters if stage == 1 else share)
    fresh = {1: low * parameters if low == 2 else 0, 2: low * share, 3: 0}[stage]
    gathered = min(parameters, REUSE_DISTANCE // 2 + PREFETCH_BUCKET) if stage == 3 else 0
    buffers = 0 if (stage, low) == (1, 2) else low * (gathered + bucket)
    # The gradients laid end to end, and a root of the second moments; a CPU has two of the latter for a moment.
    step = 4 * share + (4 if gpu else 8) * share
    return States(low * (share if stage == 3 else parameters), gradients, optimizer, 4 * share, buffers, fresh, step)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that were made under it and still live; `peak` is the most there were."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        """known: tensors that do not count."""
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
) -> int:
    """Bytes at the worst moment of one forward and backward pass, beside weights and gradients.

    latents: (B, C, N, h, w). precision: "fp32" or "bf16", of the weights, or of autocast over float32 weights.
    The pass runs PyTorch's own code on tensors that have no contents, and on no device but the CPU; attention keeps no
    matrix of scores, as on a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    low = torch.bfloat16 if precision == "bf16" else torch.float32
    batch, channels, frames, *cells = latents
    with FakeTensorMode():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if autocast else low)
        unet = CinemoUNet(**unet_config).train()
        torch.set_default_dtype(before)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        weights = list(unet.parameters())
        for weight in weights:
            weight.grad = torch.empty_like(weight)
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
