"""What makes the U-Net fast changes its numbers by rounding alone, or says by how much."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cinemo.unet import CinemoUNet, pack
from cinemo.unet.attention import attend
from cinemo.unet.ops import in_parts
from tests.tiny import TINY

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from plain_unet import PlainUNet

needs_bfloat16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor has no bfloat16 instructions that oneDNN uses",
)


@pytest.fixture(scope="module")
def unet() -> CinemoUNet:
    torch.manual_seed(0)
    unet = CinemoUNet(**TINY).eval()
    for weight in unet.parameters():  # none is zero, so that every path counts
        if not weight.abs().max():
            nn.init.normal_(weight, std=0.05)
    return unet


def inputs(dtype: torch.dtype = torch.float32, batch: int = 2, height: int = 9, width: int = 6) -> list[Any]:
    draw = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    return [
        noise(batch, 4, 5, height, width),
        500,
        noise(batch, 7, 48),
        noise(batch, 4, 1, height, width),
        torch.linspace(3.0, 9.0, batch),
    ]


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours.float() - expected.float()).norm() / expected.float().norm()).item()


def test_the_yardstick_of_the_benchmark_computes_the_same_network(unet: CinemoUNet) -> None:
    plain = PlainUNet(unet.config)
    plain.load_state_dict(unet.state_dict(), strict=False)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in unet.named_parameters()}
    with torch.no_grad():
        assert relative(unet(*inputs()).sample, plain(*inputs())) < 1e-5


@needs_bfloat16
@pytest.mark.parametrize("size", [(9, 6), (8, 20)])
def test_in_bfloat16_the_fast_path_is_as_near_to_float32_as_pytorchs_own_layers(
    unet: CinemoUNet, size: tuple[int, int]
) -> None:
    half = CinemoUNet(**TINY)
    half.load_state_dict(unet.state_dict())
    half.bfloat16().eval()
    given = inputs(torch.bfloat16, 2, *size)
    with torch.no_grad():
        expected = unet(*(x.float() if isinstance(x, torch.Tensor) else x for x in given)).sample
        fast = relative(half(*given).sample, expected)
    slow = relative(half(*given).sample.detach(), expected)  # with gradients nothing is packed
    assert fast < max(0.02, 1.2 * slow)


@needs_bfloat16
@pytest.mark.parametrize("graded", [False, True])
def test_under_autocast_weights_stay_in_float32(unet: CinemoUNet, graded: bool) -> None:
    with torch.no_grad():
        expected = unet(*inputs()).sample
    with torch.set_grad_enabled(graded), torch.autocast("cpu", torch.bfloat16):
        assert relative(unet(*inputs()).sample.detach(), expected) < 0.02


@needs_bfloat16
@pytest.mark.parametrize(("kernel", "stride", "width"), [(3, 1, 4), (3, 1, 20), (3, 2, 4), (1, 1, 4)])
def test_a_packed_convolution_gives_pytorchs_numbers_and_follows_its_weight(
    kernel: int, stride: int, width: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 48, kernel, stride, padding=kernel // 2).bfloat16()
    x = torch.randn(3, 6, width, 32).bfloat16().permute(0, 3, 1, 2)
    for _ in range(2):
        with torch.no_grad():
            assert relative(pack.conv2d(conv, x), conv(x)) < 1e-3
            other = torch.randn_like(conv(x))
            assert relative(pack.conv2d(conv, x, other), other.float() + conv(x).float()) < 5e-3
            conv.weight.mul_(2)
    with torch.inference_mode():
        loaded = nn.Conv2d(32, 48, kernel, stride, padding=kernel // 2).bfloat16()
        assert relative(pack.conv2d(loaded, x), loaded(x)) < 1e-3


@needs_bfloat16
def test_a_linear_layer_adds_its_residual_in_the_same_pass() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).bfloat16()
    x, other = torch.randn(2, 5, 64).bfloat16(), torch.randn(2, 5, 32).bfloat16()
    with torch.no_grad():
        assert relative(pack.linear(layer, x), layer(x)) < 1e-3
        assert relative(pack.linear(layer, x, other), other.float() + layer(x).float()) < 5e-3


@needs_bfloat16
def test_a_gate_is_applied_in_the_same_pass() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 96).bfloat16(), torch.randn(2, 5, 64).bfloat16()
    hidden, gate = layer(x).detach().float().chunk(2, dim=-1)
    with torch.no_grad():
        assert relative(pack.geglu(layer, x), hidden * nn.functional.gelu(gate)) < 5e-3


def test_layers_in_parts_give_the_same_numbers_and_empty_only_lists_of_their_own(
    unet: CinemoUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        expected = unet(*inputs()).sample
        for name in ("attention.LINEAR_BYTES", "attention.ATTENTION_BYTES", "ops.PART_BYTES", "pack.PIECE_BYTES"):
            monkeypatch.setattr(f"cinemo.unet.{name}", 2048)
        assert relative(unet(*inputs()).sample, expected) < 2e-6


def test_gpus_get_few_and_large_operators() -> None:
    """Parts suit the caches of CPUs: at full size they made 23,543 operators a step."""

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.number += 1
            return func(*args, **(kwargs or {}))

    with torch.device("meta"):
        unet = CinemoUNet()
        given = torch.empty(1, 4, 15, 40, 64), 981, torch.empty(1, 77, 768), torch.empty(1, 4, 1, 40, 64)
        with torch.no_grad(), Count() as count:
            assert unet(*given, torch.tensor([10.0])).sample.shape == (1, 4, 15, 40, 64)
    assert count.number < 5000  # more than half of them views


@pytest.mark.parametrize(("dim", "most"), [(0, 1), (1, 100), (1, 10**6), (2, 0)])
def test_parts_of_any_size_make_the_whole(dim: int, most: int) -> None:
    a, b = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    parts = []

    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        parts.append(x.nbytes + y.nbytes)
        return torch.stack((x + y, x - y), -1)

    with torch.no_grad():
        assert torch.equal(in_parts(add, [a, b], dim, most), torch.stack((a + b, a - b), -1))
    one = (a.nbytes + b.nbytes) // a.shape[dim]  # the least that there is
    assert max(parts) <= max(most, one)
    assert sum(parts) == a.nbytes + b.nbytes
    parts.clear()
    in_parts(add, [a.requires_grad_(), b], dim, most)
    assert len(parts) == 1


@needs_bfloat16
@pytest.mark.parametrize("bias", [False, True])
def test_attention_spelled_out_for_its_backward_is_as_exact_as_the_fused_one(bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 32, generator=draw) for length in (16, 20, 20))
    added = torch.randn(1, 3, 16, 20, generator=draw) if bias else None
    expected = nn.functional.scaled_dot_product_attention(
        *(x.double() for x in (q, k, v)), None if added is None else added.double()
    )
    half = [x.bfloat16() for x in (q, k, v)]
    half_bias = None if added is None else added.bfloat16()
    fused = relative(nn.functional.scaled_dot_product_attention(*half, half_bias), expected)
    assert relative(attend(*half, half_bias), expected) < 2 * fused


def test_deep_features_of_the_same_timestep_change_nothing_and_of_another_little(unet: CinemoUNet) -> None:
    given = inputs()
    with torch.no_grad():
        first = unet(*given, return_features=True)
        again = unet(*given, cached_features=first.features).sample
        given[1] = 480
        exact, near = unet(*given).sample, unet(*given, cached_features=first.features).sample
    assert torch.equal(again, first.sample)
    assert 0 < relative(near, exact) < 0.1
    assert unet(*inputs()).features is None


def test_every_layer_is_one_graph_for_torch_compile_and_gives_the_same_gradients(unet: CinemoUNet) -> None:
    """fullgraph: tracing fails where Python decides something by a value. The backend only runs what was traced."""
    traced = CinemoUNet(**TINY).train()
    traced.load_state_dict(unet.state_dict())
    traced.enable_gradient_checkpointing()

    def gradients(network: CinemoUNet) -> dict[str, torch.Tensor]:
        network.zero_grad()
        network(*inputs()).sample.square().mean().backward()
        return {name: weight.grad for name, weight in network.named_parameters() if weight.grad is not None}

    expected = {name: gradient.clone() for name, gradient in gradients(traced).items()}
    with patch.object(torch._dynamo.config, "recompile_limit", 64):
        traced.compile_repeated_blocks(backend="eager", fullgraph=True, dynamic=False)
        found = gradients(traced)
    assert len(found) == len(expected) > 200
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)
    assert traced.state_dict().keys() == unet.state_dict().keys()
