"""Denoising: samplers by name, classifier-free guidance, and the loop over timesteps.

Knows diffusers' schedulers, and the U-Net as a function from noisy residuals to a prediction. Knows nothing of images,
VAEs or words.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

# Only samplers that draw no noise on the way: a sample then depends on its own seed alone, whatever its batch.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}

# What a video may cost, as settings of CinemoPipeline: 100 evaluations of the U-Net; 15 of it and 15 of its first
# level; 6 and 6. Guidance acts in the first half, where the motion is decided. benchmarks/speed.py measures the rest.
_FAST = {"scheduler": "dpmsolver++", "guidance_interval": (0.0, 0.5), "cache_interval": 2}
SPEEDS: dict[str, dict[str, Any]] = {
    "paper": {"num_inference_steps": 50, "scheduler": "ddim", "guidance_interval": (0.0, 1.0), "cache_interval": 1},
    "balanced": {"num_inference_steps": 20, **_FAST},
    "fast": {"num_inference_steps": 8, **_FAST},
}


class Guidance(NamedTuple):
    """Classifier-free guidance: how strongly each sample leans from its negative prompt towards its prompt."""

    scales: Sequence[float]  # one a sample; 1 is none
    rescale: float = 0.0  # 0..1: share of the guided prediction that gets the unguided one's deviation back
    interval: tuple[float, float] = (0.0, 1.0)  # share of the steps, from first to last, in which guidance acts

    @property
    def wanted(self) -> bool:
        """Whether any sample needs its negative prompt."""
        return max(self.scales) > 1.0 and self.interval[0] < self.interval[1]

    def inside(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` lies in the interval."""
        return self.interval[0] <= step / steps < self.interval[1]

    def acts(self, step: int, steps: int) -> bool:
        """Whether it is guided."""
        return self.wanted and self.inside(step, steps)


def make_scheduler(own: Any, name: str | None, steps: int) -> Any:
    """A fresh scheduler with the noise levels of `own`, ready for `steps` steps; None keeps own's kind.

    Fresh, because timesteps are state, and a pipeline may be called from threads. Raises ValueError for a name that is
    not in SCHEDULERS.
    """
    if name is not None and name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is unknown; use {', '.join(SCHEDULERS)}")
    kind = type(own) if name is None else getattr(diffusers, SCHEDULERS[name])
    # What a kind does not know of the other's settings is left out, which diffusers would say in a warning each time.
    known = set(kind._get_init_keys(kind)) & set(own.config)
    scheduler = kind.from_config({key: own.config[key] for key in known})
    scheduler.set_timesteps(steps)
    return scheduler


def denoise(
    unet: Any,
    scheduler: Any,
    latents: Tensor,
    image_latents: Tensor,
    text: Tensor,
    motion_ids: Sequence[float],
    guidance: Guidance,
    on_step: Callable[[int, Any, Tensor], Tensor],
    cache_interval: int = 1,
) -> Tensor:
    """Noise -> motion residuals (paper, section 3.2): (B, C, F, h, w), unit variance -> the same shape.

    image_latents: (B, C, 1, h, w). text: (B, T, D), or (2 B, T, D) with the negative prompts first where guidance is
    wanted. on_step(step, timestep, latents) returns the latents to go on with. cache_interval: steps that share the
    features of the U-Net's deeper blocks, which are computed at the first of them (DeepCache, Ma et al., arXiv
    2312.00858); 1 is exact.
    """
    batch, device, dtype = len(latents), latents.device, latents.dtype
    ids = torch.tensor(motion_ids, device=device)
    scale = torch.tensor(guidance.scales, device=device, dtype=dtype).view(-1, 1, 1, 1, 1)
    latents = latents * scheduler.init_noise_sigma
    features: Tensor | None = None  # of the last U-Net call, where steps share them
    steps = len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.scale_model_input(latents, timestep)
        guided = guidance.acts(step, steps)
        copies = 2 if guided else 1  # the prompt alone is half the cost
        cache: dict[str, Any] = {}
        if cache_interval > 1:
            # Computed where the interval begins, too, whether or not this batch is guided: a sample is the same in any
            # batch.
            begins = guidance.inside(step, steps) and not guidance.inside(step - 1, steps)
            is_computed = features is None or step % cache_interval == 0 or begins
            cached = None if features is None or is_computed else features[-copies * batch :]
            cache = {"return_features": True, "cached_features": cached}
        made = unet(
            sample.repeat(copies, 1, 1, 1, 1),
            int(timestep),
            text[-copies * batch :],
            image_latents.repeat(copies, 1, 1, 1, 1),
            ids.repeat(copies),
            **cache,
        )
        predicted, features = made.sample, made.features if cache_interval > 1 else None
        if guided:
            negative, positive = predicted.chunk(2)
            predicted = rescaled(negative + scale * (positive - negative), positive, guidance.rescale)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        latents = on_step(step, timestep, latents)
    return latents


def rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """A guided prediction with that share of the deviation of the unguided one (Lin et al., arXiv 2305.08891, 3.4).

    Each (B, C, F, h, w); the deviation is a sample's. diffusers' rescale_noise_cfg, without the imports that it
    comes with.
    """
    if not share:
        return guided
    axes = tuple(range(1, guided.ndim))
    same = guided * positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return share * same + (1 - share) * guided
