"""Checkpoints hold tensors: what else a pickle could do is refused, in our reading and in DeepSpeed's."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipelines.train import state
from pipelines.train.config import TrainConfig


class Evil:
    """Makes a file wherever its pickle is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    bad, ran = tmp_path / "mp_rank_00_model_states.pt", tmp_path / "ran"
    torch.save({"module": {"weight": torch.zeros(2)}, "extra": Evil(str(ran))}, bad)
    with pytest.raises(Exception, match="Weights only load failed"):
        state._load(bad)
    with state.tensors_only(), pytest.raises(Exception, match="Weights only load failed"):
        TorchCheckpointEngine().load(str(bad))
    assert not ran.exists()


def test_what_deepspeed_stores_beside_tensors_is_read(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    saved = {"scaler": LossScaler(2.0), "stage": ZeroStageEnum.gradients, "place": fragment_address(numel=3, start=1)}
    torch.save(saved, tmp_path / "x.pt")
    read = state._load(tmp_path / "x.pt")
    assert read["stage"] == saved["stage"]
    assert read["place"] == saved["place"]


class Attribute:
    """Pickled as an attribute of something, as members of enumerations are by Python 3.11.0 to 3.11.3."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[object, ...]:
        return (getattr, (self.owner, self.name))


def test_an_attribute_is_read_only_where_it_is_a_member_of_deepspeeds_enumeration(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    torch.save(Attribute(ZeroStageEnum, "gradients"), tmp_path / "x.pt")
    assert state._load(tmp_path / "x.pt") == ZeroStageEnum.gradients
    for owner, name in ((LossScaler, "__init__"), (ZeroStageEnum, "__class__")):
        torch.save(Attribute(owner, name), tmp_path / "x.pt")
        with pytest.raises(Exception, match=r"Weights only load failed|__class__"):
            state._load(tmp_path / "x.pt")


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_in_fp16_keeps_its_loss_scale_in_another_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """Without it, the first steps after each change of layout would overflow, and be left out."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

    scaler = functools.partial(DynamicLossScaler, 2.0**16, 1000, 1.0, 2, False, dtype=torch.half)
    saved, engine = scaler(), SimpleNamespace(optimizer=SimpleNamespace())
    saved.cur_scale, saved.cur_iter, saved.last_overflow_iter, saved.cur_hysteresis = 512.0, 70, 60, 2
    (tmp_path / "old").mkdir()
    (tmp_path / "state.json").write_text(json.dumps({"layout": "old", "zero_stage": stage, "world_size": 1}))
    torch.save(
        {"optimizer_state_dict": {"loss_scaler": saved}},
        tmp_path / "old" / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    )
    monkeypatch.setattr(state, "read_fragments", lambda folder: ({}, 0))  # which needs weights
    monkeypatch.setattr(state, "load_fragments", lambda *_: None)
    config, optimizer = TrainConfig(dataset="a", output="b"), torch.optim.Adam([torch.zeros(1)])
    engine.optimizer.loss_scaler = scaler()
    state.load_checkpoint(engine, optimizer, config, 2, str(tmp_path))
    assert vars(engine.optimizer.loss_scaler) == vars(saved)
    engine.optimizer.loss_scaler = LossScaler(1.0)  # in float32 and bfloat16
    state.load_checkpoint(engine, optimizer, config, 2, str(tmp_path))
    assert engine.optimizer.loss_scaler.cur_scale == 1.0
    del engine.optimizer.loss_scaler  # at stage 0
    state.load_checkpoint(engine, optimizer, config, 2, str(tmp_path))
