"""Checkpoints of a training run: every worker's shard, and any shards read into any engine.

A checkpoint is what DeepSpeed saves, in a folder named after its layout (ZeRO stage, workers, precision, places), and
state.json, which names that folder: shards that another layout left in a reused directory are never looked at. The
same layout is loaded by DeepSpeed. Another one is read here, weight by weight: DeepSpeed's own way, the universal
checkpoint, writes everything twice first, and loads only at the stage it came from, without the moving average and
without a stage 0. Knows DeepSpeed's files and optimizers. Knows nothing of clips or models.
"""

import hashlib
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed

from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import read_file
from pipelines.train.ema import AdamWithAverage

# name of a weight -> "fp32" or a state of its optimizer -> consecutive pieces of the flattened tensor, on the CPU
Pieces = dict[str, dict[str, list[torch.Tensor]]]


def layout(config: TrainConfig, world: int) -> str:
    """The name of all that decides how DeepSpeed cuts and names its shards."""
    places = f"{config.offload_optimizer}-{config.offload_params}"
    own = hashlib.sha256(json.dumps(read_file(config.deepspeed)).encode()).hexdigest()[:8] if config.deepspeed else "no"
    return f"zero{config.zero_stage}-x{world}-{config.precision}-{places}-{own}"


def save(engine: Any, config: TrainConfig, world: int, done: dict[str, Any]) -> None:
    """Report every worker's shard as one Ray Train checkpoint. done: steps, loss, bad_steps. Raises OSError."""
    tag = layout(config, world)
    state = {**done, "zero_stage": config.zero_stage, "world_size": world, "layout": tag}
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine.save_checkpoint(folder, tag=tag, save_latest=False)
            if torch.distributed.get_rank() == 0:
                (Path(folder) / "state.json").write_text(json.dumps(state) + "\n")
            ray.train.report(
                done,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step_{done['steps']:07d}",
            )
    except (OSError, RuntimeError) as error:  # torch says RuntimeError when a disk is full
        last_line = str(error).strip().split("\n")[-1]
        raise OSError(
            f"the checkpoint of step {done['steps']} cannot be written ({last_line}); the one before it is kept: "
            "make room, and give the same command again"
        ) from error


def restore(engine: Any, optimizer: AdamWithAverage, config: TrainConfig, world: int) -> dict[str, Any]:
    """Go back to the last checkpoint, whatever layout it has; returns its state.json, {} when there is none."""
    last = ray.train.get_checkpoint()
    if last is None:
        return {}
    with last.as_directory() as folder:
        state = read_state(folder)
        if state["layout"] == layout(config, world):
            engine.load_checkpoint(folder, tag=state["layout"])
        else:
            load_pieces(engine, optimizer, *read_pieces(folder))
    return state


def read_state(folder: str | Path) -> dict[str, Any]:
    """What state.json of a checkpoint says."""
    return json.loads((Path(folder) / "state.json").read_text())


def read_pieces(folder: str | Path) -> tuple[Pieces, int]:
    """(the pieces of every weight and of its optimizer's state, steps that the optimizer made) of a checkpoint.

    Files are mapped, not read: only what is looked at is loaded.
    """
    state = read_state(folder)
    shards = Path(folder) / state["layout"]
    pieces: Pieces = defaultdict(lambda: defaultdict(list))
    steps = 0

    def load(path: Path) -> Any:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)

    def tensors(values: dict[str, Any]) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps = max(steps, int(values.get("step", 0)))
        return {name: value for name, value in values.items() if torch.is_tensor(value) and value.dim() > 0}

    if state["zero_stage"] == 0:
        model = load(shards / "mp_rank_00_model_states.pt")
        moments = model["optimizer"]["state"]
        names = [name for name in model["module"] if name not in model["buffer_names"]]
        for index, name in enumerate(names):
            for key, value in {"fp32": model["module"][name], **tensors(moments.get(index, {}))}.items():
                pieces[name][key].append(value.flatten())
        return pieces, steps

    for rank in range(state["world_size"]):
        (path,) = shards.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        optimizer = load(path)["optimizer_state_dict"]
        if state["zero_stage"] < 3:
            # Every worker owns a range of all weights laid end to end; the mapping says what of a weight is in it.
            moments = optimizer["base_optimizer_state"]["state"]
            for group, mapping in enumerate(optimizer["param_slice_mappings"]):
                values = {"fp32": optimizer["single_partition_of_fp32_groups"][group]}
                values |= tensors(moments.get(group, {}))
                for name, place in mapping.items():
                    for key, value in values.items():
                        pieces[name][key].append(value.narrow(0, place.start, place.numel))
            continue
        # Every worker owns an equal part of each weight, the last one padded, in groups laid end to end.
        shapes = load(shards / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")["param_shapes"]
        moments = optimizer["optimizer_state_dict"]["state"]
        for group, names in enumerate(shapes):
            values = {"fp32": optimizer["fp32_flat_groups"][group], **tensors(moments.get(group, {}))}
            start = 0
            for name, shape in names.items():
                part = -(-shape.numel() // state["world_size"])
                kept = max(0, min(part, shape.numel() - rank * part))
                for key, value in values.items():
                    pieces[name][key].append(value.narrow(0, start, kept))
                start += part
    return pieces, steps


def load_pieces(engine: Any, optimizer: AdamWithAverage, pieces: Pieces, steps: int) -> None:
    """Set an engine's weights and its optimizer's state: every worker takes what it owns under its own layout."""
    names = {id(weight): name for name, weight in engine.module.named_parameters()}

    def blank(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Room for the state of the weights in `flat`, and `flat` itself."""
        state = {name: torch.zeros_like(flat) for name in optimizer.state_names} if steps else {}
        # Adam is fused, and wants its step count where the weights are.
        step = torch.tensor(float(steps), device=flat.device)
        optimizer.state[flat] = {"step": step, **state} if steps else {}
        return {"fp32": flat.data, **state}

    stage = engine.zero_optimization_stage()
    if stage == 0:
        for name, weight in engine.module.named_parameters():
            for key, target in blank(weight).items():
                target.copy_(torch.cat(pieces[name][key]).view_as(target))
        return
    if stage < 3:
        targets = [blank(group["params"][0]) for group in optimizer.param_groups]
        for name, weight in engine.module.named_parameters():
            if (mapping := weight._hp_mapping) is None:
                continue  # all of it belongs to other workers
            wanted, place = mapping.lp_fragment_address, mapping.hp_fragment_address
            for key, target in targets[mapping.param_group_index].items():
                mine = torch.cat(pieces[name][key]).narrow(0, wanted.start, wanted.numel)
                target.narrow(0, place.start, place.numel).copy_(mine)
        engine.optimizer.update_lp_params()
        return
    rank, zero = torch.distributed.get_rank(), engine.optimizer
    zero.checkpoint_event_prologue()  # small weights too are in pieces from here
    for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        targets_of_group, start = blank(flat), 0
        for weight in group:
            part = weight.ds_tensor.numel()
            for key, target in targets_of_group.items():
                whole = torch.cat(pieces[names[id(weight)]][key])
                mine = whole[rank * part : (rank + 1) * part]
                target.narrow(0, start, mine.numel()).copy_(mine)
                if key == "fp32":
                    weight.ds_tensor.data.narrow(0, 0, mine.numel()).copy_(mine)
            start += part
    zero.checkpoint_event_epilogue()
