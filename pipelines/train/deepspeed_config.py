"""DeepSpeed's JSON: what this job's flags make of it, and a user's own file over that.

Knows names and values of DeepSpeed's configuration. Knows nothing of engines, so that the driver can refuse a file
before there is a cluster.
"""

import json
import math
from pathlib import Path
from typing import Any

from pipelines.train.config import TrainConfig


def shares(total_batch: int, micro_batch: int, world: int) -> tuple[int, int]:
    """(accumulation rounds, clips that a worker takes in one) at a world size; at most micro_batch, as even as can be.

    Where the batch does not divide, the last workers of a round take fewer clips, or none.
    """
    rounds = math.ceil(total_batch / (micro_batch * world))
    return rounds, math.ceil(total_batch / (rounds * world))


def deepspeed_config(config: TrainConfig, world: int) -> dict[str, Any]:
    """The whole configuration of an engine among `world` workers. Raises ValueError as check_deepspeed does."""
    rounds, micro = shares(config.total_batch, config.micro_batch, world)
    zero: dict[str, Any] = {"stage": config.zero_stage}
    for name, place in (("offload_optimizer", config.offload_optimizer), ("offload_param", config.offload_params)):
        if place != "none":
            zero[name] = {"device": place, "pin_memory": config.gpu}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": rounds,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        # torch's Adam needs no compiler, and works at every stage and place.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16" and config.zero_stage == 0:
        # Without ZeRO, DeepSpeed accumulates bf16 gradients in bf16; autocast keeps them and the weights in fp32.
        ours["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif config.precision != "fp32":
        ours[config.precision] = {"enabled": True}
    if config.precision == "bf16":
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(ours, read_file(config.deepspeed)) if config.deepspeed else ours


def read_file(path: str) -> dict[str, Any]:
    """A user's DeepSpeed JSON. Raises ValueError when it is none."""
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--deepspeed {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--deepspeed {path} is no JSON object; see DeepSpeed's configuration reference")
    return found


def merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """`theirs` over `ours`, section by section; "auto" leaves ours."""
    merged = dict(ours)
    for name, value in theirs.items():
        if isinstance(value, dict) and isinstance(ours.get(name), dict):
            merged[name] = merge(ours[name], value)
        elif value != "auto":
            merged[name] = value
    return merged


def check_deepspeed(config: TrainConfig) -> None:
    """Refuse a --deepspeed file that says what a flag of this job says: raises one ValueError that names them all."""
    if config.deepspeed is None:
        return
    given = read_file(config.deepspeed)
    # What each of DeepSpeed's names has to be; None: nothing but "auto", because the job computes it.
    flags: dict[str, tuple[str, Any]] = {
        "train_batch_size": ("--total-batch", config.total_batch),
        "train_micro_batch_size_per_gpu": ("--micro-batch", None),
        "gradient_accumulation_steps": ("--total-batch", None),
        "gradient_clipping": ("--grad-clip", config.grad_clip),
        "zero_optimization.stage": ("--zero-stage", config.zero_stage),
        "zero_optimization.offload_optimizer.device": ("--offload-optimizer", config.offload_optimizer),
        "zero_optimization.offload_param.device": ("--offload-params", config.offload_params),
        "bf16.enabled": ("--precision", config.precision == "bf16"),
        "fp16.enabled": ("--precision", config.precision == "fp16"),
        "torch_autocast.enabled": ("--precision", config.precision == "bf16" and config.zero_stage == 0),
        "optimizer": ("--learning-rate", None),
        "scheduler": ("--warmup-steps", None),
    }
    conflicts = []
    for name, (flag, value) in flags.items():
        found: Any = given
        for part in name.split("."):
            found = found.get(part, "auto") if isinstance(found, dict) else "auto"
        if found != "auto" and (value is None or found != value):
            conflicts.append(f"{name} ({flag} sets it{'' if value is None else f' to {value}'})")
    if conflicts:
        raise ValueError(f"--deepspeed {config.deepspeed}: take out {', '.join(conflicts)}")
