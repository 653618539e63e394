"""Adam with the average of the weights."""

import pytest
import torch

from pipelines.train.engine import AdamWithAverage


def take_steps(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, count: int) -> list[torch.Tensor]:
    """The weight after each step towards 1."""
    after = []
    for _ in range(count):
        optimizer.zero_grad()
        (weight - 1).square().sum().backward()
        optimizer.step()
        after.append(weight.detach().clone())
    return after


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_weights_are_torchs_and_the_average_weighs_every_step_as_it_says(decay: float) -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-2, 3, 7)) for _ in range(2))
    optimizer = AdamWithAverage([ours], 0.1, decay)
    after = take_steps(optimizer, ours, 40)
    expected = take_steps(torch.optim.Adam([theirs], lr=0.1, fused=True), theirs, 40)
    torch.testing.assert_close(torch.stack(after), torch.stack(expected), rtol=0, atol=0)
    if decay == 0:
        assert set(optimizer.state[ours]) == {"step", *optimizer.state_names} == {"step", "exp_avg", "exp_avg_sq"}
        return
    # The share of each step's weights in the last average: its own (1 - decay), and what later steps left of it.
    decays = [0.0] + [min(decay, (1 + step) / (10 + step)) for step in range(2, 41)]
    shares = [(1 - decays[at]) * torch.tensor(decays[at + 1 :]).prod().item() for at in range(40)]
    assert sum(shares) == pytest.approx(1)
    mean = sum(share * weight for share, weight in zip(shares, after, strict=True))
    torch.testing.assert_close(optimizer.state[ours]["ema"], mean, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_left_out_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3) * 2)
    optimizer = AdamWithAverage([weight], 0.1, 0.9)
    take_steps(optimizer, weight, 3)
    before = {name: value.clone() for name, value in optimizer.state[weight].items()}
    kept = weight.detach().clone()
    optimizer.found_inf = torch.ones(())
    take_steps(optimizer, weight, 2)
    assert torch.equal(weight, kept)
    assert all(torch.equal(optimizer.state[weight][name], value) for name, value in before.items())


def test_an_average_begins_with_the_first_step_that_changes_something() -> None:
    left_out, plain = (torch.nn.Parameter(torch.ones(3) * 2) for _ in range(2))
    optimizer, expected = AdamWithAverage([left_out], 0.1, 0.9), AdamWithAverage([plain], 0.1, 0.9)
    optimizer.found_inf = torch.ones(())
    take_steps(optimizer, left_out, 2)
    optimizer.found_inf = torch.zeros(())
    take_steps(optimizer, left_out, 4)
    take_steps(expected, plain, 4)
    for name, value in expected.state[plain].items():
        torch.testing.assert_close(optimizer.state[left_out][name], value, rtol=0, atol=0)


def test_weight_decay_is_adamws() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-2, 3, 7)) for _ in range(2))
    after = take_steps(AdamWithAverage([ours], 0.1, 0.9, weight_decay=0.3), ours, 20)
    expected = take_steps(torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3, fused=True), theirs, 20)
    torch.testing.assert_close(torch.stack(after), torch.stack(expected), rtol=0, atol=0)
