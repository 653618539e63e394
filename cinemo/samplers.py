"""The samplers and speeds that can be requested; add others here. Imports no torch, because `--help` lists them."""

from typing import Any, Literal

# Only samplers that add no noise between steps, so that a sample depends on its own seed alone, not on its batch.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}

# Settings of CinemoPipeline by speed. "paper" evaluates the whole U-Net 100 times; "balanced" 15 times, and another 15
# times only its first level; "fast" 6 and 6. Guidance acts in the first half, which decides motion. benchmarks/speed.py
# measures them.
_FAST = {"scheduler": "dpmsolver++", "guidance_interval": (0.0, 0.5), "cache_interval": 2}
Speed = Literal["paper", "balanced", "fast"]
SPEEDS: dict[Speed, dict[str, Any]] = {
    "paper": {"num_inference_steps": 50, "scheduler": "ddim", "guidance_interval": (0.0, 1.0), "cache_interval": 1},
    "balanced": {"num_inference_steps": 20, **_FAST},
    "fast": {"num_inference_steps": 8, **_FAST},
}
