"""AdamW with a moving average of the weights, and the DeepSpeed engine that trains the U-Net with it.

DeepSpeed runs an optimizer on the float32 weights that a worker owns, whatever the ZeRO stage, and shards, offloads
and saves its state. An average that is part of this state is sharded, offloaded and saved with it, and needs no
communication.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from cinemo.unet import CinemoUNet
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import deepspeed_config

# Input shapes for which one kind of layer may be compiled. The full-size U-Net has 14 for each shape of clips;
# PyTorch's default limit is 8.
COMPILED_SHAPES = 256


class AdamWithAverage(torch.optim.Adam):
    """torch.optim.Adam with state["ema"]: the average of each weight after every step.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that the first weights soon stop counting. decay 0 keeps
    no average. weight_decay: AdamW's (Loshchilov and Hutter 2019). With `found_inf` set to 1, as PyTorch's GradScaler
    sets it, a step changes nothing; it is a tensor, so that the CPU need not wait for a GPU to decide.
    """

    found_inf: torch.Tensor | None

    def __init__(self, parameters: Any, lr: float, decay: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, decoupled_weight_decay=True, fused=True)
        self.decay, self.found_inf = decay, None

    @property
    def state_names(self) -> list[str]:
        """Names of the tensors in the state of each weight, besides "step"."""
        return ["exp_avg", "exp_avg_sq", *(["ema"] if self.decay else [])]

    def create_state(self, weight: torch.Tensor, steps: int) -> None:
        """Make the state of a weight after `steps` steps, with zeros in place of its moments and average."""
        # The fused Adam needs its step count on the device of the weight.
        step = torch.tensor(float(steps), device=weight.device)
        self.state[weight] = {"step": step, **{name: torch.zeros_like(weight) for name in self.state_names}}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of AdamW, then update the average."""
        result = super().step(closure)
        if not self.decay:
            return result
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            self.state[weight].setdefault("ema", weight.detach().clone())
        if weights:
            averages = [self.state[weight]["ema"] for weight in weights]
            share = self._share_of_new(self.state[weights[0]]["step"]).to(weights[0])
            torch._foreach_lerp_(averages, weights, [share] * len(weights))
        return result

    def _share_of_new(self, steps: torch.Tensor) -> torch.Tensor:
        """Share of the average, float64 (), that the weights after so many steps get; 0 if the last changed nothing."""
        steps = steps.double()
        share = 1 - ((1 + steps) / (10 + steps)).clamp(max=self.decay)
        share = torch.where(steps > 1, share, 1.0)  # an average begins with the weights after the first step
        return share if self.found_inf is None else share * (1 - self.found_inf)


def start_engine(config: TrainConfig, unet: CinemoUNet, world_size: int) -> tuple[Any, AdamWithAverage]:
    """Start DeepSpeed; returns (engine, the optimizer that it runs on this worker's share of the weights)."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if config.gpu else "cpu")
    import deepspeed

    if not config.gpu:
        # DeepSpeed would compile its shared-memory collectives now, which takes a minute and needs a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        # Layers of one kind share their code, and each of their shapes is compiled once.
        torch._dynamo.config.recompile_limit = max(COMPILED_SHAPES, torch._dynamo.config.recompile_limit)
        unet.compile_repeated_blocks(dynamic=False)
    trained = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = AdamWithAverage(trained, config.learning_rate, config.ema_decay, config.weight_decay)
    engine, *_ = deepspeed.initialize(model=unet, optimizer=optimizer, config=deepspeed_config(config, world_size))
    return engine, optimizer


def cast_inputs(engine: Any) -> Callable[..., Any]:
    """Wrap an engine: its inputs are cast to the type of its weights, while noising and loss stay float32."""
    dtype = next(engine.module.parameters()).dtype
    return lambda *inputs: engine(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs))


def take_step(engine: Any, optimizer: AdamWithAverage) -> torch.Tensor:
    """Take the optimizer's step after the last accumulation step; returns the gradient's norm before clipping, ().

    A gradient that is not finite changes nothing, on any worker: neither weights nor moments nor average. The norm is
    not read here, because that waits for a GPU; under ZeRO 1 to 3 DeepSpeed itself reads it after the last accumulation
    step.
    """
    if engine.zero_optimization():
        engine.step()  # skips the step by itself where the gradient is not finite; the norm is then infinite
        return torch.as_tensor(engine.get_global_grad_norm())
    gradients = [weight.grad for weight in engine.module.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    optimizer.found_inf = (~norm.isfinite()).float()
    engine.step()
    return norm
