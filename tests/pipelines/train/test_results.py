"""Schedules of the learning rate, and numbers of steps that are read from the device together."""

import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from pipelines.train import results
from pipelines.train.config import TrainConfig

STEPS, WARMUP = 40, 8


def rates(steps: int = STEPS, **settings: object) -> list[float]:
    given = {"dataset": "a", "output": "b", "learning_rate": 3e-4, "warmup_steps": WARMUP, "max_steps": STEPS}
    config = TrainConfig(**{**given, **settings})
    return [results.learning_rate(config, step) for step in range(steps)]


def test_a_constant_rate_follows_the_warm_up() -> None:
    assert rates() == pytest.approx([3e-4 * min(1, (step + 1) / WARMUP) for step in range(STEPS)])
    assert rates(warmup_steps=0) == [3e-4] * STEPS


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_a_rate_that_falls_is_transformers_one_step_ahead(schedule: str, reference: object, warmup: int) -> None:
    """Theirs begins at 0; ours, a step ahead, ends just above 0, so that no step changes nothing."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    theirs, expected = reference(optimizer, warmup, STEPS + 1), []
    for _ in range(STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(lr_schedule=schedule, warmup_steps=warmup) == pytest.approx(expected[1:])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_ends_at_its_minimum_and_stays_there(schedule: str) -> None:
    settings = {"lr_schedule": schedule, "decay_steps": 20, "min_learning_rate": 1e-5}
    found = rates(**settings)
    assert found[:WARMUP] == rates()[:WARMUP]
    assert found[20:] == [1e-5] * 20
    assert found[WARMUP - 1 : 21] == sorted(found[WARMUP - 1 : 21], reverse=True)
    assert found == rates(**settings, max_steps=30)  # a function of the step alone, not of where the run ends


def test_steps_are_read_together_and_bad_clips_are_named() -> None:
    def taken(step: int, *losses: float) -> results.StepTensors:
        own = [(["a", "b"], torch.tensor(losses[:2])), (["c"], torch.tensor(losses[2:]))]
        return results.StepTensors(step, torch.tensor(losses).mean(), torch.tensor(2.0 * step), 1e-3, 0.5, own)

    steps = [taken(1, 1.0, 2.0, 3.0), taken(2, 1.0, math.nan, math.inf)]
    (first, good), (second, bad) = results.read(steps)
    assert good == results.StepResult(2.0, 2.0, 1e-3, 0.5)
    assert (second.step, bad.grad_norm) == (2, 4.0)
    assert math.isnan(bad.loss)
    assert results.non_finite_clips(first) == []
    assert results.non_finite_clips(second) == ["b", "c"]
    assert list(results.read([])) == []
