"""The model directory: finding, loading, identifying, exporting."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from cinemo import checkpoint as model_directory
from cinemo.checkpoint import (
    ModelCard,
    describe,
    export_model,
    fingerprint,
    load_scheduler,
    read_card,
    resolve,
    write_card,
)
from cinemo.motion import OFFICIAL_MOTION, UNIFORM_MOTION
from cinemo.unet import CinemoUNet
from tests.tiny import TINY


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def test_the_official_layout_gets_the_official_meaning(checkpoint: Path) -> None:
    card = read_card(checkpoint)
    assert card.motion == OFFICIAL_MOTION
    assert card.sizes is None
    config = load_scheduler(checkpoint).config  # the file says scaled_linear 0.00085..0.012
    assert (config.beta_schedule, config.beta_start, config.beta_end) == ("linear", 1e-4, 0.02)


def test_the_final_alpha_is_the_official_one(golden: Any, checkpoint: Path) -> None:
    assert float(load_scheduler(checkpoint).final_alpha_cumprod) == float(golden("sampling")["final_alpha_cumprod"])


def test_an_exported_model_is_complete_and_keeps_its_card(checkpoint: Path, tmp_path: Path) -> None:
    unet = CinemoUNet(**TINY)
    card = ModelCard(sizes=[(64, 96)], lengths=[16], lineage={"dataset": "abc", "steps": 100})
    out = export_model(checkpoint, unet, tmp_path / "new" / "model", card)
    assert read_card(out) == card
    assert card.motion == UNIFORM_MOTION
    again = model_directory.load_unet(resolve(out))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in unet.state_dict().items())
    assert load_scheduler(out).config.beta_schedule == "linear"  # as trained, not as the source's file says
    assert sorted(p.name for p in out.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("bucket", [25, -1, 3.5, True, None, "x", float("inf")])
def test_a_card_whose_default_is_no_bucket_is_refused_by_the_name_of_its_file(bucket: Any, tmp_path: Path) -> None:
    write_card(tmp_path, ModelCard(sampling={"motion_bucket": bucket}))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/cinemo.json cannot be used")):
        read_card(tmp_path)


def test_an_export_says_what_its_unet_predicts(checkpoint: Path, tmp_path: Path) -> None:
    out = export_model(checkpoint, CinemoUNet(**TINY), tmp_path / "model", ModelCard(), "v_prediction")
    assert load_scheduler(out).config.prediction_type == "v_prediction"


def test_a_model_that_predicts_noise_has_some_signal_at_its_last_level(tmp_path: Path) -> None:
    source = resolve("builtin:tiny")
    out = export_model(source, CinemoUNet(**TINY), tmp_path / "model", ModelCard(), "epsilon")
    assert load_scheduler(source).alphas_cumprod[-1] == 0  # where residuals are predicted, noise alone will do
    assert load_scheduler(out).alphas_cumprod[-1] > 0
    assert torch.equal(load_scheduler(out).alphas_cumprod, load_scheduler(source, "epsilon").alphas_cumprod)


def test_exporting_again_replaces_the_model_whole(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export_model(checkpoint, CinemoUNet(**TINY), out, ModelCard(lineage={"run": "first"}))
    before = fingerprint(out)
    export_model(checkpoint, CinemoUNet(**TINY), out, ModelCard(lineage={"run": "second"}))
    assert read_card(out).lineage == {"run": "second"}
    assert fingerprint(out) != before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_export_that_fails_leaves_the_old_model(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export_model(checkpoint, CinemoUNet(**TINY), out, ModelCard())
    before = fingerprint(out)

    class Broken:
        def save_pretrained(self, path: Path) -> None:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        export_model(checkpoint, Broken(), out, ModelCard())
    assert fingerprint(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_fingerprint_follows_the_bytes_alone(copy: Path, checkpoint: Path) -> None:
    assert fingerprint(copy) == fingerprint(checkpoint)
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text() + " ")
    assert fingerprint(copy) != fingerprint(checkpoint)
    assert fingerprint(copy / "vae") == fingerprint(checkpoint / "vae")


@pytest.mark.parametrize("kind", ["fp16", "sharded", "sharded fp16", "bin", "bin fp16"])
def test_weights_load_under_every_name_that_they_have_on_the_hub(copy: Path, kind: str, caplog: Any) -> None:
    from safetensors.torch import load_file

    unet = model_directory.load_unet(copy)
    parameters = describe(copy)["parameters"]
    for weights in copy.glob("*/*.safetensors"):
        variant = ".fp16" if "fp16" in kind else ""
        if kind.startswith("bin"):
            stem = weights.stem if weights.stem.startswith("diffusion") else "pytorch_model"
            torch.save(load_file(weights), weights.with_name(f"{stem}{variant}.bin"))
            weights.unlink()
        elif weights.parent.name == "unet" and "sharded" in kind:
            weights.unlink()
            unet.save_pretrained(weights.parent, max_shard_size="4MB", variant=variant[1:] or None)
        elif variant:
            weights.rename(weights.with_name(f"{weights.stem}{variant}.safetensors"))
    assert len(list((copy / "unet").glob("*-of-*"))) == (3 if "sharded" in kind else 0)
    caplog.clear()
    loaded = model_directory.load_unet(resolve(copy)).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in unet.state_dict().items())
    model_directory.load_text(copy)
    model_directory.load_vae(copy)
    assert "unsafe" not in caplog.text
    if not kind.startswith("bin"):
        assert describe(copy)["parameters"] == parameters


def test_a_variant_beside_whole_weights_is_neither_loaded_nor_counted(copy: Path) -> None:
    weights, parameters = copy / "unet" / "diffusion_pytorch_model.safetensors", describe(copy)["parameters"]
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"junk")
    assert model_directory.choose_weights(copy / "unet")[0] == [weights]
    assert describe(copy)["parameters"] == parameters
    model_directory.load_unet(copy)


def test_weights_of_another_name_and_pickles_that_run_code_are_refused(copy: Path, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(copy / "unet" / "weights.safetensors")
    with pytest.raises(ValueError, match=r"unet holds weights\.safetensors; needed is diffusion_pytorch_model"):
        model_directory.load_unet(copy)
    torch.save({"a": Code()}, weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="cannot be loaded as CinemoUNet"):
        model_directory.load_unet(copy)
    assert not (tmp_path / "ran").exists()


def test_a_directory_without_a_part_says_which(copy: Path) -> None:
    cases = {
        "text_encoder": (model_directory.load_text, "no text_encoder/"),
        "scheduler": (load_scheduler, "no scheduler/"),
        "unet": (resolve, "no U-Net"),
    }
    for part, (load, words) in cases.items():
        shutil.rmtree(copy / part)
        with pytest.raises(ValueError, match=words):
            load(copy)


@pytest.mark.parametrize(("removed", "kind"), [("vae", "frame"), ("vae_temporal_decoder", "temporal")])
def test_either_vae_may_be_missing(copy: Path, removed: str, kind: str) -> None:
    shutil.rmtree(copy / removed)
    model_directory.load_vae(copy, "auto")
    with pytest.raises(ValueError, match="no VAE in"):
        model_directory.load_vae(copy, kind)


@pytest.mark.parametrize("name", ["builtin:huge", "/no/such/model", "nope", "a/b/c", __file__])
def test_a_model_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="model"):
        resolve(name)


@pytest.mark.parametrize("text", ["not json", '{"format_version": 99}', '{"format_version": 1, "colour": 3}', "[]"])
def test_a_broken_card_names_its_file(copy: Path, text: str) -> None:
    (copy / "cinemo.json").write_text(text)
    with pytest.raises(ValueError, match=r"cinemo\.json cannot be used"):
        read_card(copy)


def test_broken_weights_get_one_sentence(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match="cannot be loaded as CinemoUNet"):
        model_directory.load_unet(copy)


@pytest.mark.parametrize("wrapped", [True, False])
def test_lavie_weights_start_a_unet_without_motion_control(tmp_path: Path, wrapped: bool) -> None:
    donor = CinemoUNet(**TINY).state_dict()
    lavie = {name: value for name, value in donor.items() if not name.startswith("add_embedding.")}
    torch.save({"ema": lavie} if wrapped else lavie, tmp_path / "lavie_base.pt")
    unet = model_directory.load_lavie(tmp_path / "lavie_base.pt", **TINY)
    assert all(torch.equal(unet.state_dict()[name], value) for name, value in lavie.items())
    assert not unet.add_embedding.linear_2.weight.any()


def test_lavie_s_names_are_ours_less_the_motion_embedding() -> None:
    lavie = json.loads((Path(__file__).parent / "golden" / "lavie_full_keys.json").read_text())
    with torch.device("meta"):
        own = {name: list(value.shape) for name, value in CinemoUNet().state_dict().items()}
    assert {name: shape for name, shape in own.items() if not name.startswith("add_embedding.")} == lavie


def test_other_weights_are_not_taken_for_lavie_s(tmp_path: Path) -> None:
    torch.save({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not LaVie's U-Net"):
        model_directory.load_lavie(tmp_path / "other.pt", **TINY)


def test_ours_keeps_its_own_schedule(checkpoint: Path, tmp_path: Path) -> None:
    out = export_model(checkpoint, CinemoUNet(**TINY), tmp_path / "model", ModelCard())
    DDIMScheduler(beta_start=2e-4, beta_end=0.02, prediction_type="v_prediction").save_pretrained(out / "scheduler")
    config = load_scheduler(out).config
    assert (config.beta_start, config.prediction_type) == (2e-4, "v_prediction")
