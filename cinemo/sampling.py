"""Denoising: classifier-free guidance and the loop over timesteps. The samplers are listed in cinemo/samplers.py."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from cinemo.samplers import SCHEDULERS


class Guidance(NamedTuple):
    """Classifier-free guidance: how strongly each sample is drawn from its negative prompt towards its prompt."""

    scales: Sequence[float]  # one per sample; 1 is no guidance
    rescale: float = 0.0  # 0..1: how far the guided prediction is rescaled to the standard deviation of the prompt's
    interval: tuple[float, float] = (0.0, 1.0)  # begin and end of the guided steps, as shares of all steps

    @property
    def wanted(self) -> bool:
        """Whether any sample needs its negative prompt."""
        return max(self.scales) > 1.0 and self.interval[0] < self.interval[1]

    def inside(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` lies in the interval."""
        return self.interval[0] <= step / steps < self.interval[1]

    def acts(self, step: int, steps: int) -> bool:
        """Whether step number `step` of `steps` is guided."""
        return self.wanted and self.inside(step, steps)


def make_scheduler(base: Any, name: str | None, steps: int) -> Any:
    """Make a scheduler of the class `name` (None: base's own) with the noise levels of `base`, ready for `steps` steps.

    A new one each time, because timesteps are state and a pipeline may be called from threads. Raises ValueError for a
    name that is not in SCHEDULERS.
    """
    if name is not None and name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is unknown; use {', '.join(SCHEDULERS)}")
    scheduler_class = type(base) if name is None else getattr(diffusers, SCHEDULERS[name])
    # Drop the settings that this class does not have: diffusers would warn about them each time.
    known = set(scheduler_class._get_init_keys(scheduler_class)) & set(base.config)
    scheduler = scheduler_class.from_config({key: base.config[key] for key in known})
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
    on_step: Callable[[int, Any, Tensor, Tensor], Tensor],
    cache_interval: int = 1,
) -> Tensor:
    """Noise -> motion residuals (paper, section 3.2): (B, C, F, h, w), unit variance -> the same shape.

    image_latents: (B, C, 1, h, w). text: (B, T, D), or (2 B, T, D) with the negative prompts first if guidance.wanted.
    on_step(step, timestep, latents, denoised) returns the latents to continue with; denoised: the residuals as now
    predicted, or the latents if the sampler predicts none. cache_interval: number of steps that share the features of
    the U-Net's deeper blocks, computed at the first of them (DeepCache, Ma et al., arXiv 2312.00858); 1 is exact.
    """
    batch, device, dtype = len(latents), latents.device, latents.dtype
    ids = torch.tensor(motion_ids, device=device)
    scale = torch.tensor(guidance.scales, device=device, dtype=dtype).view(-1, 1, 1, 1, 1)
    latents = latents * scheduler.init_noise_sigma
    features: Tensor | None = None  # of the last U-Net call, if steps share them
    steps = len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        sample = scheduler.scale_model_input(latents, timestep)
        guided = guidance.acts(step, steps)
        copies = 2 if guided else 1  # without the negative prompt, half the cost
        cache: dict[str, Any] = {}
        if cache_interval > 1:
            # Computed anew where the guidance interval begins, even if this batch is not guided: a sample must not
            # depend on its batch.
            begins = guidance.inside(step, steps) and not guidance.inside(step - 1, steps)
            is_computed = features is None or step % cache_interval == 0 or begins
            cached = None if features is None or is_computed else features[-copies * batch :]
            cache = {"return_features": True, "cached_features": cached}
        output = unet(
            sample.repeat(copies, 1, 1, 1, 1),
            int(timestep),
            text[-copies * batch :],
            image_latents.repeat(copies, 1, 1, 1, 1),
            ids.repeat(copies),
            **cache,
        )
        predicted, features = output.sample, output.features if cache_interval > 1 else None
        if guided:
            negative, positive = predicted.chunk(2)
            predicted = rescaled(negative + scale * (positive - negative), positive, guidance.rescale)
        done = scheduler.step(predicted, timestep, latents)
        denoised = done.get("pred_original_sample")
        latents = on_step(step, timestep, done.prev_sample, done.prev_sample if denoised is None else denoised)
    return latents


def rescaled(guided: Tensor, positive: Tensor, share: float) -> Tensor:
    """Rescale `share` of a guided prediction to the standard deviation of `positive` (Lin et al., 2305.08891, 3.4).

    positive: the prediction with the prompt alone. Each (B, C, F, h, w); one deviation per sample.
    Equals diffusers' rescale_noise_cfg, without its imports.
    """
    if not share:
        return guided
    axes = tuple(range(1, guided.ndim))
    matched = guided * positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return share * matched + (1 - share) * guided
