"""A training worker before its first step and after a bad step, without Ray and DeepSpeed."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cinemo import checkpoint
from pipelines.core import models
from pipelines.train import results, stream, trainer
from pipelines.train.config import TrainConfig
from tests.pipelines.conftest import export_another


def worker(**settings: Any) -> trainer.Trainer:
    """A worker whose model is not loaded."""
    made = trainer.Trainer.__new__(trainer.Trainer)
    made.config = TrainConfig(**{"dataset": "a", "output": "b", "precision": "fp32", **settings})
    made.engine = made.optimizer = None
    made.rank, made.world_size = 1, 2
    made.losses, made.bad_steps, made.unread = [], [], []
    return made


def test_a_run_that_has_taken_more_steps_than_are_asked_for_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no weights of an earlier step, and must not give the last ones its name."""
    monkeypatch.setattr(trainer, "restore_checkpoint", lambda *_: {"steps": 100})
    sentence = (
        "^--max-steps 50: this run has taken 100 steps, and earlier weights are not kept; "
        "give at least as many, or another --output$"
    )
    made = worker(max_steps=50)
    monkeypatch.setattr(made, "check_model", lambda: None)
    with pytest.raises(trainer.StopTraining, match=sentence):
        made.setup()


def test_a_model_that_is_replaced_while_a_job_trains_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(checkpoint.resolve("builtin:tiny"), tmp_path / "base"))
    monkeypatch.setattr(trainer, "gather", lambda own: own)
    made = worker(init=str(base), max_steps=5)
    made.model_fingerprint, made.local_rank, made.rank = models.fingerprint(base), 0, 0
    made.first_step, made.held_out, made.validation_rows = 5, [], []
    monkeypatch.setattr(made, "finish", lambda: pytest.fail("a card was written"))
    monkeypatch.setattr(trainer, "restore_checkpoint", lambda *_: pytest.fail("a checkpoint was loaded"))
    sentence = rf"^model {re.escape(str(base))} has fingerprint \w+ here, and \w+ when the job began; run the job again"

    with monkeypatch.context() as patched:
        patched.setattr(made, "setup", lambda: export_another(base / "unet"))  # after the weights were loaded
        with pytest.raises(trainer.StopTraining, match=sentence):
            made.run()
    with pytest.raises(trainer.StopTraining, match=sentence):  # before another worker loads them
        made.run()
    made.local_rank = 1  # the first worker of the node has found it
    monkeypatch.setattr(trainer, "gather", lambda own: [*own, "model x has"])
    with pytest.raises(trainer.StopTraining, match=r"^model x has$"):
        made.run()


def test_a_bad_step_names_its_clips_when_no_worker_can_read_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are read together on a GPU, long after a stream has dropped the clips of the first."""

    def gather(own: list[str]) -> list[str]:
        return sorted([*own, *["d"] * ("b" in own)])  # the other worker's clip fares as this one's b does

    def taken(step: int, grad_norm: float, *losses: float) -> results.StepTensors:
        own = [(["a"], torch.tensor(losses[:1])), (["b"], torch.tensor(losses[1:])), ([], torch.zeros(0))]
        return results.StepTensors(step, torch.tensor(losses).sum(), torch.tensor(grad_norm), 1e-3, 0.5, own)

    monkeypatch.setattr(results, "gather", gather)
    made = worker(max_bad_steps=2)
    made.clips = {}  # type: ignore[assignment]
    made.unread = [taken(1, math.inf, 1.0, 2.0), taken(2, 1.0, 1.0, 2.0), taken(3, math.nan, math.nan, 2.0)]
    made.read_steps()
    assert made.bad_steps == [{"step": 1, "clips": ["a", "b", "d"]}, {"step": 3, "clips": ["a"]}]
    made.unread = [taken(4, math.nan, 1.0, math.nan)]
    with pytest.raises(trainer.StopTraining, match=r"^step 4 has no finite loss .* look at the clips b, d, or lower"):
        made.read_steps()


def test_a_stream_that_was_started_anew_answers_with_an_error_and_does_not_wait() -> None:
    """Ray starts a lost actor from its first arguments, which a worker in the middle of a step does not notice."""
    actor = stream.Stream.__new__(stream.Stream)
    actor.generation, actor.next, actor.clips, actor.validation = 0, 0, {}, None
    for call in (lambda: actor.clip(0), lambda: actor.clip(-1), actor.held_out):
        with pytest.raises(RuntimeError, match="started anew"):
            call()
    actor.generation, actor.next, actor.validation = 1, 90, []
    with pytest.raises(RuntimeError, match="clip 3 of the stream is gone; 90 is next"):
        actor.clip(3)
