"""Schedulers by name, and settings by speed: the one place to add either. Loads no torch: `--help` lists them."""

from typing import Any, Literal

# Only samplers that add no noise between steps: a sample then depends on its own seed alone, whatever its batch.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}

# Settings of CinemoPipeline by speed. "paper" evaluates the U-Net 100 times; "balanced" 15 times, and its first level
# alone 15 times; "fast" 6 and 6. Guidance acts in the first half, which decides the motion. See benchmarks/speed.py.
_FAST = {"scheduler": "dpmsolver++", "guidance_interval": (0.0, 0.5), "cache_interval": 2}
Speed = Literal["paper", "balanced", "fast"]
SPEEDS: dict[Speed, dict[str, Any]] = {
    "paper": {"num_inference_steps": 50, "scheduler": "ddim", "guidance_interval": (0.0, 1.0), "cache_interval": 1},
    "balanced": {"num_inference_steps": 20, **_FAST},
    "fast": {"num_inference_steps": 8, **_FAST},
}
