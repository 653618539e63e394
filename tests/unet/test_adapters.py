"""LoRA adapters act in every layer that can have one, in all of the U-Net's ways to compute; off, they do nothing."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from cinemo import lora
from cinemo.unet import CinemoUNet
from tests.tiny import TINY
from tests.unet.test_speed import inputs, needs_bfloat16, relative

# How the U-Net computes: dtype, whether with gradients, and the bound of rounding.
WAYS = [
    pytest.param(torch.float32, False, 1e-5, id="float32"),
    pytest.param(torch.float32, True, 1e-5, id="float32, training"),
    pytest.param(torch.bfloat16, False, 2e-2, id="packed bfloat16", marks=needs_bfloat16),
]
LAYERS = {"motion": 4, "attention": 12, "all": 16}  # of a transformer block, with its projections in and out


def make_unet(targets: str | None = None) -> CinemoUNet:
    """A frozen U-Net without a zero weight, so that every path counts; with an adapter that changes every target."""
    torch.manual_seed(0)
    unet = CinemoUNet(**TINY).eval()
    for weight in unet.parameters():
        if not weight.abs().max():
            nn.init.normal_(weight, std=0.05)
    unet.requires_grad_(False)  # PyTorch rounds otherwise where a weight has a gradient
    if targets:
        lora.add_adapter(unet, 4, 8, targets)
        for name, weight in unet.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    return unet


def forward(unet: CinemoUNet, dtype: torch.dtype, graded: bool) -> torch.Tensor:
    unet.to(dtype)
    with torch.set_grad_enabled(graded):
        return unet(*inputs(dtype, 1, 4, 4)).sample.detach()


def each_alone(unet: CinemoUNet) -> Iterator[str]:
    """For every layer with adapters: let the adapter act in it alone, and yield its name."""
    layers = {name: layer for name, layer in unet.named_modules() if hasattr(layer, "base_layer")}
    for layer in layers.values():
        layer.set_scale("default", 0.0)
    for name, layer in layers.items():
        layer.set_scale("default", 1.0)
        yield name
        layer.set_scale("default", 0.0)


@pytest.mark.parametrize(("dtype", "graded", "bound"), WAYS)
@pytest.mark.parametrize("targets", ["motion", "all"])
def test_an_adapter_computes_what_merged_weights_do_and_off_it_leaves_no_bit(
    targets: str, dtype: torch.dtype, graded: bool, bound: float
) -> None:
    plain = forward(make_unet(), dtype, graded)
    unet = make_unet(targets)
    adapted = forward(unet, dtype, graded)
    lora.set_weights(unet, {"default": 0.5})
    halved = forward(unet, dtype, graded)
    for weights in ({"default": 0.0}, {}):
        lora.set_weights(unet, weights)
        assert torch.equal(forward(unet, dtype, graded), plain)
    lora.set_weights(unet, {"default": 1.0})
    assert torch.equal(forward(unet, dtype, graded), adapted)
    merged = make_unet(targets)
    forward(merged, dtype, graded)  # packs the weights of before
    merged.fuse_lora()
    assert relative(adapted, forward(merged, dtype, graded)) < bound < relative(adapted, plain)
    assert bound < relative(halved, plain) < relative(adapted, plain)
    lora.detach(unet)
    assert not lora.layers_of(unet)
    assert torch.equal(forward(unet, dtype, graded), plain)


@needs_bfloat16
def test_every_layer_uses_its_adapter_in_packed_bfloat16() -> None:
    plain, unet = forward(make_unet(), torch.bfloat16, False), make_unet("all")
    names = [name for name in each_alone(unet) if not torch.equal(forward(unet, torch.bfloat16, False), plain)]
    assert names == [name for name, layer in unet.named_modules() if hasattr(layer, "base_layer")]
    inside = [name for name, layer in make_unet().named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    ends = ("conv_in", "conv_out", "time_embedding", "add_embedding")
    assert names == [name for name in inside if not name.startswith(ends)]


@pytest.mark.parametrize("targets", LAYERS)
def test_a_new_adapter_changes_nothing_and_alone_is_trained(targets: str) -> None:
    plain, unet = make_unet(), make_unet()
    lora.add_adapter(unet, 2, 2, targets, seed=3)
    assert torch.equal(forward(unet, torch.float32, False), forward(plain, torch.float32, False))
    trained = [name for name, weight in unet.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    blocks = [layer for name, layer in unet.named_modules() if name.endswith("attentions.0")]
    assert {len(lora.layers_of(block)) for block in blocks} == {LAYERS[targets]}


def test_adapters_are_drawn_from_their_seed_alone() -> None:
    states = []
    for seed in (3, 3, 4):
        unet = make_unet()
        torch.rand(1)
        lora.add_adapter(unet, 2, 2, "motion", seed=seed)
        states.append(lora.state_of(unet))
    assert all(torch.equal(weight, states[1][key]) for key, weight in states[0].items())
    assert any(not torch.equal(weight, states[2][key]) for key, weight in states[0].items())


def test_every_adapter_gets_a_gradient_and_the_same_one_with_checkpointing() -> None:
    unet = make_unet("all").train()
    unet(*inputs(torch.float32, 1, 4, 4)).sample.square().mean().backward()
    expected = {name: weight.grad for name, weight in unet.named_parameters() if weight.requires_grad}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in expected.values())
    unet.zero_grad()
    unet.enable_gradient_checkpointing()
    unet(*inputs(torch.float32, 1, 4, 4)).sample.square().mean().backward()
    for name, weight in unet.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad, expected[name])
