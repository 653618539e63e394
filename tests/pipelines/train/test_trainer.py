"""A training worker before its first step and after a bad step, without Ray and DeepSpeed."""

import math
from typing import Any

import pytest
import torch

from pipelines.train import results, stream, trainer
from pipelines.train.config import TrainConfig


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
    with pytest.raises(trainer.StopTraining, match=sentence):
        worker(max_steps=50).setup()


def test_a_bad_step_names_its_clips_when_no_worker_can_read_them_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are read together on a GPU, long after a stream has dropped the clips of the first."""

    def gather(own: list[str]) -> list[str]:
        return sorted([*own, *["d"] * ("b" in own)])  # the other worker's clip fares as this one's b does

    def taken(step: int, grad_norm: float, *losses: float) -> results.StepTensors:
        own = [(["a"], torch.tensor(losses[:1])), (["b"], torch.tensor(losses[1:])), ([], torch.zeros(0))]
        return results.StepTensors(step, torch.tensor(losses).sum(), torch.tensor(grad_norm), 1e-3, 0.5, own)

    monkeypatch.setattr(results, "gather_ids", gather)
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
