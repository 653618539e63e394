"""DeepSpeed's configuration: made of this job's flags, with a user's own JSON file merged over it.

Nothing here imports DeepSpeed, so that the driver can refuse a file before a cluster starts.
"""

import json
import math
from pathlib import Path
from typing import Any

from pipelines.train.config import TrainConfig

# Gradients that are reduced at once in LoRA training. DeepSpeed's default, 500 million, would allocate a buffer of half
# the size of the frozen weights.
LORA_BUCKET = 20_000_000


def gradient_accumulation(total_batch: int, micro_batch: int, world_size: int) -> tuple[int, int]:
    """Split a batch into (gradient accumulation steps, clips of a worker in each of them), as evenly as possible.

    micro_batch: largest number of clips of a worker. Where the batch does not divide, the last workers of an
    accumulation step take fewer clips, or none.
    """
    steps = math.ceil(total_batch / (micro_batch * world_size))
    return steps, math.ceil(total_batch / (steps * world_size))


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """Make the whole configuration of an engine. Raises ValueError when the user's file cannot be read."""
    accumulation_steps, micro_batch_size = gradient_accumulation(config.total_batch, config.micro_batch, world_size)
    zero: dict[str, Any] = {"stage": config.zero_stage}
    for name, device in (("offload_optimizer", config.offload_optimizer), ("offload_param", config.offload_params)):
        if device != "none":
            zero[name] = {"device": device, "pin_memory": config.gpu}
    if config.lora_rank is not None:
        zero["reduce_bucket_size"] = LORA_BUCKET
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        # PyTorch's Adam needs no compiler, and works at every stage, offloaded or not.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if config.arithmetic == "bf16" and config.zero_stage == 0:
        # Without ZeRO, DeepSpeed accumulates bf16 gradients in bf16; autocast keeps them and the weights in fp32.
        ours["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif config.arithmetic != "fp32":
        ours[config.arithmetic] = {"enabled": True}
    if config.arithmetic == "bf16":
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(ours, read_file(config.deepspeed)) if config.deepspeed else ours


def read_file(path: str) -> dict[str, Any]:
    """Read a user's DeepSpeed JSON, or take the text that check_deepspeed read. Raises ValueError."""
    try:
        settings = json.loads(path if path.startswith("{") else Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--deepspeed {path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--deepspeed {path} is not a JSON object; see DeepSpeed's configuration reference")
    return settings


def merge(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Merge `theirs` over `ours`, section by section; "auto" keeps the value of `ours`."""
    merged = dict(ours)
    for name, value in theirs.items():
        if isinstance(value, dict) and isinstance(ours.get(name), dict):
            merged[name] = merge(ours[name], value)
        elif value != "auto":
            merged[name] = value
    return merged


def check_deepspeed(config: TrainConfig) -> TrainConfig:
    """Refuse a --deepspeed file that contradicts flags of this job. Raises one ValueError that names all of them.

    Returns the config with the file's text in place of its path, because workers run in other directories, perhaps on
    other machines.
    """
    if config.deepspeed is None:
        return config
    given = read_file(config.deepspeed)
    # The flag and the only accepted value of each name, besides "auto"; None: only "auto", as the job computes it.
    flags: dict[str, tuple[str, Any]] = {
        "train_batch_size": ("--total-batch", config.total_batch),
        "train_micro_batch_size_per_gpu": ("--micro-batch", None),
        "gradient_accumulation_steps": ("--total-batch", None),
        "gradient_clipping": ("--grad-clip", config.grad_clip),
        "zero_optimization.stage": ("--zero-stage", config.zero_stage),
        "zero_optimization.offload_optimizer.device": ("--offload-optimizer", config.offload_optimizer),
        "zero_optimization.offload_param.device": ("--offload-params", config.offload_params),
        "bf16.enabled": ("--precision", config.arithmetic == "bf16"),
        "fp16.enabled": ("--precision", config.arithmetic == "fp16"),
        "torch_autocast.enabled": ("--precision", config.arithmetic == "bf16" and config.zero_stage == 0),
        "optimizer": ("--learning-rate", None),
        "scheduler": ("--warmup-steps", None),
        # state.py reads shards in the order of the model's weights, and the optimizer's state as it is in memory.
        "zero_optimization.round_robin_gradients": ("this job", False),
        "zero_optimization.elastic_checkpoint": ("this job", False),
    }
    conflicts = []
    for name, (flag, value) in flags.items():
        own: Any = given
        for part in name.split("."):
            own = own.get(part, "auto") if isinstance(own, dict) else "auto"
        if own != "auto" and (value is None or own != value):
            conflicts.append(f"{name} ({flag} sets it{'' if value is None else f' to {value}'})")
    if conflicts:
        raise ValueError(f"--deepspeed {config.deepspeed}: remove {', '.join(conflicts)}")
    return config.model_copy(update={"deepspeed": json.dumps(given)})
