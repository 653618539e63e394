"""Checkpoints of a training run: each worker's shard, and shards of any layout loaded into any engine.

A checkpoint is what DeepSpeed saves, in a folder named after its layout (ZeRO stage, workers, precision, offloading),
and state.json, which names that folder: shards that another layout left in a reused directory are never read.
DeepSpeed itself loads a checkpoint of the same layout. One of another layout is loaded here, weight by weight, because
DeepSpeed's universal checkpoint writes every tensor twice first, loads only at the stage that it came from, and leaves
out stage 0 and the moving average. Frozen weights, those of the model that a LoRA adapts, are in no checkpoint.
"""

import hashlib
import json
import math
import os
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed

from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import read_file
from pipelines.train.engine import AdamWithAverage
from pipelines.train.uploads import Uploads, local_copy, not_written

# name of a weight -> "fp32" or a name in its optimizer state -> consecutive fragments of the flat tensor, on the CPU
Fragments = dict[str, dict[str, list[torch.Tensor]]]
# (tensors by name, each of them weights laid end to end; where each weight is in them, as name, start and count)
Shard = tuple[dict[str, Any], list[tuple[str, int, int]]]


def layout(config: TrainConfig, world_size: int) -> str:
    """Name of everything that determines how DeepSpeed shards the run and names its files."""
    offload = f"{config.offload_optimizer}-{config.offload_params}"
    own = hashlib.sha256(json.dumps(read_file(config.deepspeed)).encode()).hexdigest()[:8] if config.deepspeed else "no"
    return f"zero{config.zero_stage}-x{world_size}-{config.arithmetic}-{offload}-{own}"


def save_checkpoint(
    engine: Any,
    config: TrainConfig,
    world_size: int,
    progress: dict[str, Any],
    uploads: Uploads,
    before_upload: Callable[[], object] | None = None,
) -> None:
    """Write the shards of all workers to their local disks, and begin to upload them as one Ray Train checkpoint.

    progress: steps, loss, bad_steps and cursor. Raises OSError when a shard cannot be written.
    """
    tag = layout(config, world_size)
    state = {**progress, "zero_stage": config.zero_stage, "world_size": world_size, "layout": tag}
    try:
        folder = uploads.folder()
        engine.save_checkpoint(folder, tag=tag, save_latest=False, exclude_frozen_parameters=True)
        if torch.distributed.get_rank() == 0:
            (Path(folder) / "state.json").write_text(json.dumps(state) + "\n")
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when a disk is full
        raise not_written(progress["steps"], error) from error
    uploads.start(folder, progress, before_upload)


def restore_checkpoint(engine: Any, optimizer: AdamWithAverage, config: TrainConfig, world_size: int) -> dict[str, Any]:
    """Load the last checkpoint, whatever its layout; returns its state.json, {} when there is no checkpoint."""
    last = ray.train.get_checkpoint()
    if last is None:
        return {}
    with local_copy(last, config.output) as folder:
        return load_checkpoint(engine, optimizer, config, world_size, folder)


def load_checkpoint(
    engine: Any, optimizer: AdamWithAverage, config: TrainConfig, world_size: int, folder: str
) -> dict[str, Any]:
    """Load the checkpoint in a folder, whatever its layout, into an engine; returns its state.json."""
    state = read_state(folder)
    if state["layout"] == layout(config, world_size):
        with tensors_only():
            engine.load_checkpoint(folder, tag=state["layout"], load_module_strict=config.lora_rank is None)
    else:
        load_fragments(engine, optimizer, *read_fragments(folder))
        restore_loss_scale(engine, folder)
    return state


def read_state(folder: str | Path) -> dict[str, Any]:
    """Read state.json of a checkpoint."""
    return json.loads((Path(folder) / "state.json").read_text())


def read_fragments(folder: str | Path) -> tuple[Fragments, int]:
    """Read (fragments of each weight and of its optimizer state, steps that the optimizer took) of a checkpoint.

    Reads DeepSpeed's files by their keys: its own reader (zero_to_fp32) leaves out stage 0 and the optimizer state.
    Files are mapped into memory, and only what is used is read.
    """
    state = read_state(folder)
    read = {0: _read_unsharded, 1: _read_ranges, 2: _read_ranges, 3: _read_parts}[state["zero_stage"]]
    fragments: Fragments = defaultdict(lambda: defaultdict(list))
    steps = 0
    for tensors, places in read(Path(folder) / state["layout"], state["world_size"]):
        steps = max(steps, int(tensors.get("step", 0)))
        flat = {key: value.flatten() for key, value in tensors.items() if torch.is_tensor(value) and value.dim() > 0}
        for name, start, count in places:
            for key, value in flat.items():
                fragments[name][key].append(value.narrow(0, start, count))
    return fragments, steps


def _read_unsharded(folder: Path, world_size: int) -> Iterator[Shard]:
    """Stage 0: rank 0 saved each weight as a whole."""
    model = _load(folder / "mp_rank_00_model_states.pt")
    optimizer_state = model["optimizer"]["state"]
    names = [name for name in model["module"] if name not in model["buffer_names"]]
    for index, name in enumerate(names):
        weight = model["module"][name]
        yield {"fp32": weight, **optimizer_state.get(index, {})}, [(name, 0, weight.numel())]


def _read_ranges(folder: Path, world_size: int) -> Iterator[Shard]:
    """Stages 1 and 2: each worker saved one range of all weights laid end to end."""
    for rank in range(world_size):
        saved = _load_optimizer(folder, rank)
        optimizer_state = saved["base_optimizer_state"]["state"]
        for group, mapping in enumerate(saved["param_slice_mappings"]):
            tensors = {"fp32": saved["single_partition_of_fp32_groups"][group], **optimizer_state.get(group, {})}
            yield tensors, [(name, place.start, place.numel) for name, place in mapping.items()]


def _read_parts(folder: Path, world_size: int) -> Iterator[Shard]:
    """Stage 3: each worker saved an equal part of every weight, padded at the end of the weight."""
    for rank in range(world_size):
        saved = _load_optimizer(folder, rank)
        optimizer_state = saved["optimizer_state_dict"]["state"]
        shapes = _load(folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")["param_shapes"]
        for group, shape_of in enumerate(shapes):
            places, start = [], 0
            for name, shape in shape_of.items():
                part = math.ceil(shape.numel() / world_size)
                places.append((name, start, max(0, min(part, shape.numel() - rank * part))))
                start += part
            yield {"fp32": saved["fp32_flat_groups"][group], **optimizer_state.get(group, {})}, places


def _load_optimizer(folder: Path, rank: int) -> dict[str, Any]:
    (path,) = folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return _load(path)["optimizer_state_dict"]


def _load(path: Path) -> Any:
    with tensors_only():
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


@contextmanager
def tensors_only() -> Iterator[None]:
    """Have torch.load, DeepSpeed's calls included, refuse pickles that hold more than tensors and DeepSpeed's records.

    Otherwise, whoever can write the output's checkpoints could run code on every worker.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        members = [(_member, f"{module}.getattr") for module in ("builtins", "__builtin__")]
        records = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
        with torch.serialization.safe_globals([*records, *members]):
            yield
    finally:
        os.environ.pop(_WEIGHTS_ONLY)
        if before is not None:
            os.environ[_WEIGHTS_ONLY] = before


def _member(kind: Any, name: str) -> Any:
    """Stand in for getattr, by which Python 3.11.0 to 3.11.3 pickle the member of an enumeration."""
    from deepspeed.runtime.zero.config import ZeroStageEnum

    if kind is not ZeroStageEnum:
        raise pickle.UnpicklingError(f"Weights only load failed: getattr of {kind}")
    return ZeroStageEnum[name]


_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load; DeepSpeed passes weights_only=False


def restore_loss_scale(engine: Any, folder: str | Path) -> None:
    """Continue with the loss scale of a checkpoint of another layout, if the engine computes in fp16."""
    own = getattr(engine.optimizer, "loss_scaler", None)
    if not getattr(own, "dynamic", False):
        return
    saved = _load_optimizer(Path(folder) / read_state(folder)["layout"], 0)["loss_scaler"]
    if saved.dynamic:
        for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"):
            setattr(own, name, getattr(saved, name))


def trained_weights(unet: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and weights that are trained: all of them, or those of LoRA adapters."""
    return [(name, weight) for name, weight in unet.named_parameters() if weight.requires_grad]


def load_fragments(engine: Any, optimizer: AdamWithAverage, fragments: Fragments, steps: int) -> None:
    """Set an engine's weights and its optimizer's state; each worker keeps what its own layout assigns to it."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    stage = engine.zero_optimization_stage()
    if steps:
        _create_optimizer_state(engine, optimizer, steps)
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()  # shards the small weights too, which every worker has whole
    for name, weight in trained_weights(engine.module):
        values = torch.cat(fragments[name]["fp32"])
        state = {key: torch.cat(fragments[name][key]) for key in optimizer.state_names} if steps else {}
        if stage == 0:  # nothing is sharded, and deepspeed.utils has nothing to set
            weight.data.copy_(values.view_as(weight))
            for key, value in state.items():
                optimizer.state[weight][key].copy_(value.view_as(weight))
        elif stage < 3:
            safe_set_full_fp32_param(weight, values)
            for key, value in state.items():
                safe_set_full_optimizer_state(weight, value, key)
        else:
            _set_part(weight, values, state)
    if stage in (1, 2):
        engine.optimizer.update_lp_params()  # safe_set_full_fp32_param leaves the weights of the module as they were
    if stage == 3:
        engine.optimizer.checkpoint_event_epilogue()  # gathers the small weights again


def _create_optimizer_state(engine: Any, optimizer: AdamWithAverage, steps: int) -> None:
    """Make the optimizer's state after `steps` steps, filled with zeros: deepspeed.utils sets only what is there."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if engine.zero_optimization_stage() == 3:
        # Between steps, stage 3 takes the tensors out of the optimizer's groups; no public function returns them.
        sharded = engine.optimizer.fp32_partitioned_groups_flat
    else:
        sharded = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for tensor in sharded:
        optimizer.create_state(tensor, steps)
    if engine.zero_optimization_stage() in (1, 2):
        (flat,) = sharded  # there is one group of weights
        weights = [weight for _, weight in trained_weights(engine.module)]
        lazy_init_hp_params_optimizer_state(weights, flat, optimizer.state)


def _set_part(weight: Any, values: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    """Set this worker's part of a weight at stage 3, and of its optimizer state, from the whole flat tensors."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    # safe_set_full_* fail where a weight does not divide among the workers: the last part is padded.
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    count = weight.ds_tensor.numel()

    def own_part(whole: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(whole, (0, world_size * count - whole.numel()))
        return padded[rank * count : (rank + 1) * count]

    safe_set_local_fp32_param(weight, own_part(values))
    for key, value in state.items():
        safe_set_local_optimizer_state(weight, own_part(value), key)
    # The part that the module computes with: GatheredParameters would set it too, but needs two collectives a weight.
    weight.ds_tensor.data.copy_(own_part(values))
