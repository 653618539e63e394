"""Files of LoRA adapters: diffusers' layout, a card that travels inside, and one sentence for each bad one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cinemo import lora
from cinemo.checkpoint import fingerprint
from cinemo.unet import CinemoUNet
from tests.unet.test_adapters import forward, make_unet

CARD = lora.AdapterCard("builtin:tiny", "a" * 64, "b" * 64, 4, 8.0, "motion", "spin", [(64, 96)], [4], {"steps": 3})
Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"


@pytest.fixture
def trained() -> CinemoUNet:
    return make_unet("all")


@pytest.fixture
def file(trained: CinemoUNet, tmp_path: Path) -> Path:
    return lora.write(tmp_path / "lora", lora.state_of(trained), lora.adapter_config(trained), CARD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_that_was_written_and_read_computes_the_same(
    trained: CinemoUNet, file: Path, dtype: torch.dtype
) -> None:
    adapter = lora.read(file.parent)
    assert (adapter.card, adapter.path) == (CARD, file)
    assert adapter.fingerprint == lora.fingerprint(file)
    assert json.loads((file.parent / lora.CARD_NAME).read_text())["trigger_words"] == "spin"
    unet = make_unet().to(dtype)
    lora.attach(unet, adapter, "new")
    assert {weight.dtype for weight in unet.parameters()} == {dtype}
    assert not any(weight.requires_grad for weight in unet.parameters())
    assert torch.equal(forward(unet, dtype, False), forward(trained, dtype, False))


def test_adapters_add_up_and_are_taken_away_one_by_one(trained: CinemoUNet, file: Path) -> None:
    unet, adapter = make_unet(), lora.read(file)
    lora.attach(unet, adapter, "one")
    lora.attach(unet, adapter, "two")
    assert lora.names(unet) == ["one", "two"]
    lora.set_weights(unet, {"one": 0.25, "two": 0.75})
    torch.testing.assert_close(forward(unet, torch.float32, False), forward(trained, torch.float32, False))
    lora.detach(unet, "one")
    lora.set_weights(unet, {"two": 1.0})
    assert torch.equal(forward(unet, torch.float32, False), forward(trained, torch.float32, False))
    lora.detach(unet, "two")
    assert lora.names(unet) == lora.layers_of(unet) == []


def test_diffusers_own_loader_reads_the_file_and_its_alpha(trained: CinemoUNet, file: Path) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    state, _, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(str(file.parent), return_lora_metadata=True)
    unet = make_unet()
    unet.load_lora_adapter(state, prefix="unet", adapter_name="theirs", metadata=metadata)
    assert unet.peft_config["theirs"].lora_alpha == 8
    unet.requires_grad_(False)
    assert torch.equal(forward(unet, torch.float32, False), forward(trained, torch.float32, False))


def test_a_file_of_another_tool_has_an_empty_card_and_its_rank_as_alpha(trained: CinemoUNet, tmp_path: Path) -> None:
    save_file(lora.state_of(trained), tmp_path / lora.WEIGHTS_NAME)
    adapter, unet = lora.read(tmp_path), make_unet()
    assert (adapter.card, adapter.config) == (lora.AdapterCard(), {})
    lora.check_base(adapter.card, tmp_path, "any", "theirs")
    lora.attach(unet, adapter, "theirs")
    assert {layer.scaling["theirs"] for layer in lora.layers_of(unet)} == {1.0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("out/lora", ("out/lora", 1.0)),
        ("out/lora:0.5", ("out/lora", 0.5)),
        ("C:/lora:-1", ("C:/lora", -1.0)),
        ("models:/spin@candidate", ("models:/spin@candidate", 1.0)),
        ("models:/spin/3:0.8", ("models:/spin/3", 0.8)),
        ("s3://bucket/lora", ("s3://bucket/lora", 1.0)),
        ("models:/spin/3#http://me:pass@host:5000", ("models:/spin/3#http://me:pass@host:5000", 1.0)),
        ("models:/spin/3#https://host:5000:0.8", ("models:/spin/3#https://host:5000", 0.8)),
        ("models:/spin/3#http://host/mlflow:0.8", ("models:/spin/3#http://host/mlflow", 0.8)),
        ("models:/spin/3#https://host:0.8", ("models:/spin/3#https://host", 0.8)),
        ("models:/spin/3#http://me:pass@host:1.0", ("models:/spin/3#http://me:pass@host", 1.0)),
    ],
)
def test_a_weight_follows_the_last_colon(value: str, expected: tuple[str, float]) -> None:
    assert lora.parse_option(value) == expected


@pytest.mark.parametrize("value", ["", ":1", "lora:nan", "lora:inf"])
def test_an_option_without_a_path_or_a_finite_weight_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"should be PATH or PATH:weight"):
        lora.parse_option(value)


def test_bad_arguments_and_files_are_refused_in_one_sentence(file: Path, tmp_path: Path) -> None:
    unet, adapter = make_unet(), lora.read(file)
    text, other = tmp_path / "notes.txt", tmp_path / "other.safetensors"
    text.write_text("no adapter")
    other.write_text("no adapter")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    newer = tmp_path / "newer.safetensors"
    save_file(adapter.state, newer, metadata={"cinemo": '{"format_version": 2}'})
    odd = tmp_path / "odd.safetensors"
    save_file(adapter.state, odd, metadata={"cinemo": "[]"})
    wide, extra = dict(adapter.state), dict(adapter.state)
    wide[Q], extra["text_encoder.x.lora_A.weight"] = torch.zeros(4, 7), torch.zeros(4, 7)
    alone = {key: value for key, value in adapter.state.items() if key != Q}
    half = {key: value for key, value in adapter.state.items() if key != Q.replace("lora_A", "lora_B")}
    elsewhere = {**adapter.state, "unet.nowhere.lora_A.weight": torch.zeros(4, 7)}
    faults = [
        (lambda: lora.add_adapter(unet, 0, 1, "all"), r"rank 0 .* should be at least 1"),
        (lambda: lora.add_adapter(unet, 4, 4, "every"), r"targets 'every' .* use one of attention, motion, all"),
        (lambda: lora.find(tmp_path), r"holds no pytorch_lora_weights.safetensors; pass"),
        (lambda: lora.find(text), r"notes.txt is not a .safetensors file; pass"),
        (lambda: lora.find(tmp_path / "none"), r"none is neither a file, nor a folder, nor a repository .* check"),
        (lambda: lora.read(other), r"other.safetensors cannot be read: .*; download or export it again$"),
        (lambda: lora.read(newer), r"card that cannot be used: format_version 2 is not 1; upgrade cinemo"),
        (lambda: lora.read(odd), r"odd.safetensors has a card that cannot be used: .*; export it again$"),
        (lambda: lora.attach(make_unet(), replace(adapter, config={**adapter.config, "r": "four"}), "a"),
         r"cannot be loaded: .*; export it again$"),
        (lambda: lora.attach(unet, replace(adapter, state={}), "a"), r"holds no weights"),
        (lambda: lora.attach(unet, replace(adapter, state=wide), "a"), r"to_q.lora_A.weight is \(4, 7\), and should"),
        (lambda: lora.attach(unet, replace(adapter, state=extra), "a"), r"text_encoder.x.* is no LoRA weight of a U"),
        (lambda: lora.attach(unet, replace(adapter, state=alone), "a"), r"to_q.lora_B.weight is .* no such layer"),
        (lambda: lora.attach(unet, replace(adapter, state=half), "a"), r"to_q.lora_A.* without its lora_B.weight"),
        (lambda: lora.find("x" * 300), r"is neither a file, nor a folder, nor a repository .* check"),
        (lambda: lora.attach(unet, replace(adapter, state=elsewhere), "a"), r"nowhere.lora_A.* there is no such layer"),
        (lambda: lora.set_weights(unet, {"a": 1.0}), r"adapter 'a' is not loaded; attach it \(loaded: none\)$"),
        (lambda: lora.detach(unet, "a"), r"adapter 'a' is not loaded; attach it \(loaded: none\)$"),
        (lambda: lora.check_base(CARD, tmp_path, "mine", "spin/"),
         rf"lora spin/ was trained on builtin:tiny with the U-Net bbbbbbbbbbbb, but mine has the U-Net "
         rf"{fingerprint(tmp_path / 'unet')[:12]}; use it with"),
    ]  # fmt: skip
    for fault, sentence in faults:
        with pytest.raises(ValueError, match=sentence) as refused:
            fault()
        assert "\n" not in str(refused.value)
    assert lora.layers_of(unet) == []
    lora.attach(unet, adapter, "a")
    with pytest.raises(ValueError, match=r"adapter name 'a' is taken; detach"):
        lora.attach(unet, adapter, "a")
    with pytest.raises(ValueError, match=r"adapter 'b' is not loaded; attach it \(loaded: a\)$"):
        lora.detach(unet, "b")
