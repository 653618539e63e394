"""Adam that also keeps a moving average of the weights, beside its moments.

DeepSpeed runs an optimizer on the float32 weights that a worker owns, whatever the ZeRO stage, and shards, offloads
and saves its state. An average that is part of this state is sharded, exact and saved without a line more, and costs
no communication.
"""

from collections.abc import Callable
from typing import Any

import torch


class AdamWithAverage(torch.optim.Adam):
    """torch.optim.Adam with state["ema"]: the average of every weight after each step, decay rising to `decay`.

    The decay at step n is min(decay, (1 + n) / (10 + n)), so that the first weights are soon forgotten. decay 0 keeps
    no average. With `skip` set, a step does nothing.
    """

    def __init__(self, parameters: Any, lr: float, decay: float) -> None:
        super().__init__(parameters, lr=lr, fused=True)
        self.decay, self.skip = decay, False

    @property
    def state_names(self) -> list[str]:
        """The tensors that the state of every weight has, besides "step"."""
        return ["exp_avg", "exp_avg_sq", *(["ema"] if self.decay else [])]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of Adam, then of the average."""
        if self.skip:
            return None
        result = super().step(closure)
        if not self.decay:
            return result
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            self.state[weight].setdefault("ema", weight.detach().clone())
        if weights:
            done = int(self.state[weights[0]]["step"])
            share = 1 - min(self.decay, (1 + done) / (10 + done))
            torch._foreach_lerp_([self.state[weight]["ema"] for weight in weights], weights, share)
        return result
