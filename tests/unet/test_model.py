"""The U-Net against the official one's numbers and names."""

import json
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cinemo.unet import CinemoUNet
from cinemo.unet.attention import frame_positions, relative_position_bucket
from tests.tiny import TINY


@pytest.fixture(scope="module")
def unet(checkpoint: Path) -> CinemoUNet:
    return CinemoUNet.from_pretrained(checkpoint / "unet").eval()


def forward(unet: CinemoUNet, case: dict[str, Any], dtype: torch.dtype, timestep: Any) -> np.ndarray:
    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(case[name]).to(dtype)

    with torch.no_grad():
        out = unet.to(dtype)(
            tensor("sample"), timestep, tensor("encoder_hidden_states"), tensor("base_content"), tensor("motion_ids")
        ).sample
    unet.to(torch.float32)
    return out.numpy()


@pytest.mark.parametrize("name", ["unet_case_a", "unet_case_b"])
@pytest.mark.parametrize(
    ("dtype", "expected", "bound"), [(torch.float32, "output", 2e-5), (torch.float64, "output_f64", 1e-6)]
)
def test_forward_equals_the_official_unet(
    golden: Any, checkpoint: Path, name: str, dtype: torch.dtype, expected: str, bound: float
) -> None:
    case = golden(name)
    unet = CinemoUNet.from_pretrained(checkpoint / "unet").eval()
    out = forward(unet, case, dtype, torch.from_numpy(case["timesteps"]))
    assert np.abs(out - case[expected]).max() <= bound


def test_one_timestep_serves_a_whole_batch(golden: Any, unet: CinemoUNet) -> None:
    case = golden("unet_case_a")
    out = forward(unet, case, torch.float32, int(case["timestep_scalar"]))
    assert np.abs(out - case["output_scalar"]).max() <= 2e-5


def test_full_size_has_the_official_names_and_shapes() -> None:
    official = json.loads((Path(__file__).parents[1] / "golden" / "unet_full_keys.json").read_text())
    with torch.device("meta"):
        unet = CinemoUNet()
    assert {name: list(value.shape) for name, value in unet.state_dict().items()} == official
    assert len(official) == 834
    assert sum(prod(p.shape) for p in unet.parameters()) == 911_092_740


def test_relative_positions_fall_into_the_official_buckets(golden: Any) -> None:
    table = golden("relpos")
    buckets = relative_position_bucket(torch.from_numpy(table["offset_key_minus_query"]))
    assert (buckets.numpy() == table["bucket"]).all()


def test_a_new_model_has_no_temporal_mixing_and_no_motion_control() -> None:
    unet = CinemoUNet(**TINY).eval()
    zero = [name for name, value in unet.named_parameters() if not value.any() and name.endswith("weight")]
    assert all("attn_temp.to_out.0" in name or name == "add_embedding.linear_2.weight" for name in zero)
    assert "add_embedding.linear_2.weight" in zero


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (5, 7)])
def test_sizes_that_do_not_halve_work(size: tuple[int, int]) -> None:
    unet = CinemoUNet(**TINY).eval()
    with torch.no_grad():
        out = unet(
            torch.randn(2, 4, 3, *size), 7, torch.randn(2, 5, 48), torch.randn(2, 4, 1, *size), torch.tensor([0, 19])
        ).sample
    assert out.shape == (2, 4, 3, *size)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    unet = CinemoUNet(**TINY)
    for value in unet.parameters():  # away from the zero starts, which hold back what feeds them
        torch.nn.init.normal_(value, std=0.1)
    unet(
        torch.randn(1, 4, 3, 8, 8), 7, torch.randn(1, 5, 48), torch.randn(1, 4, 1, 8, 8), torch.tensor([3])
    ).sample.sum().backward()
    assert [name for name, value in unet.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_save_and_load_keep_every_number(tmp_path: Path) -> None:
    unet = CinemoUNet(**TINY)
    unet.save_pretrained(tmp_path)
    again = CinemoUNet.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_out_channels": (32, 60)}, "60 is not divisible"),
        ({"attention_head_dim": 2}, "at least 32"),
        ({"attention_head_dim": (1, 1, 1)}, "attention_head_dim has 3 entries"),
        ({"down_block_types": ("CrossAttnDownBlock2D", "DownBlock3D")}, "CrossAttnDownBlock2D"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CinemoUNet(**{**TINY, **change})


def test_a_checkpoint_of_another_arithmetic_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "unet" / "config.json").read_text())
    with pytest.raises(ValueError, match="use_linear_projection"):
        CinemoUNet.from_config({**config, "use_linear_projection": True})


def test_gradient_checkpointing_keeps_fewer_activations_and_changes_no_gradient() -> None:
    unet = CinemoUNet(**TINY)
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 4, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, 48, generator=generator)

    def backward() -> tuple[dict[str, torch.Tensor], int]:
        """Every gradient, and the bytes that forward kept for backward."""
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        unet.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = unet(clip[:, :, 1:], torch.tensor([3, 900]), text, clip[:, :, :1], torch.tensor([0, 7])).sample
        out.square().mean().backward()
        return {name: weight.grad.clone() for name, weight in unet.named_parameters()}, kept

    expected, all_bytes = backward()
    unet.enable_gradient_checkpointing()
    found, few_bytes = backward()
    assert few_bytes < all_bytes / 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_frames_of_a_longer_clip_keep_their_places(unet: CinemoUNet) -> None:
    """Temporal attention sees their numbers: as many frames in a row are another clip."""
    some = torch.tensor([0, 2, 5])
    whole, part = frame_positions(torch.arange(6), torch.float32), frame_positions(some, torch.float32)
    assert torch.equal(part.bucket, whole.bucket[some][:, some])
    assert torch.equal(part.cos, whole.cos[some])
    assert torch.equal(part.sin, whole.sin[some])

    generator = torch.Generator().manual_seed(0)
    sample, image = torch.randn(1, 4, 2, 8, 8, generator=generator), torch.randn(1, 4, 1, 8, 8, generator=generator)
    call = partial(unet, sample, 500, torch.randn(1, 5, 48, generator=generator), image, torch.tensor([7]))
    with torch.no_grad():
        assert torch.equal(call(frame_numbers=torch.arange(3)).sample, call().sample)
        assert (call(frame_numbers=some).sample - call().sample).abs().max() > 1e-3
