"""What the evaluation takes: lists, ablations, variants, metrics that have what they need."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.evaluate import config
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.config import EvaluateConfig
from tests.loras import write_adapter


def make(**changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"dataset": "synthetic:2", "output": "out", **changes})


def test_lists_may_be_written_with_commas() -> None:
    made = make(metrics="fvd,motion", model=["builtin:tiny,svd:x", "pia:a+b"])
    assert made.metrics == ["fvd", "motion"]
    assert made.model == ["builtin:tiny", "svd:x", "pia:a+b"]


def test_a_metric_without_weights_is_left_out_and_says_what_it_needs() -> None:
    made = make(metrics="fvd,fid,motion", inception="weights.pt")
    assert made.measured == ["fid", "motion"]
    assert made.left_out == {"fvd": "no weights: pass --i3d"}


def test_an_ablation_varies_cinemo_models_alone() -> None:
    made = make(ablate="init=dct,none", model=["builtin:tiny", "svd:x"])
    labels = [variant.label for variant in config.variants(made)]
    assert labels == ["real", "builtin:tiny init=dct", "builtin:tiny init=none", "svd:x"]
    assert config.read_ablation("num-inference-steps=10,50")[1][1] == {"num_inference_steps": 50}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ablate": "init=dst"}, "init dst is unknown; use dct, fft, none"),
        ({"ablate": "colour=red"}, "colour=red is not an ablation"),
        ({"ablate": "guidance_scale=high"}, "high is not a valid guidance_scale; give a number"),
        ({"metrics": "fvd,fun"}, "fun is unknown; use fvd, fid"),
        ({"num_frames": 2}, "num_frames"),
        ({"ablate": "lora=0,1"}, "multiplies the weights of adapters; name one with --lora"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make(**changes)


def test_paths_become_absolute_and_other_names_stay(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    placed = evaluate.placed(
        make(dataset="ucf101:made", model=["videos:made", "svd:owner/name", "pia:made+owner/name"])
    )
    assert placed.dataset == f"ucf101:{tmp_path}/made"
    assert placed.model == [f"videos:{tmp_path}/made", "svd:owner/name", f"pia:{tmp_path}/made+owner/name"]
    assert evaluate.placed(make(dataset="synthetic")).dataset == "synthetic:64"


def test_adapters_are_checked_and_part_of_what_rows_depend_on(checkpoint: Path, tmp_path: Path) -> None:
    own = write_adapter(tmp_path / "own", checkpoint)
    other = write_adapter(tmp_path / "other", checkpoint, unet_fingerprint="f" * 64)
    size: dict[str, Any] = {"height": 64, "width": 64, "output": str(tmp_path / "out"), "model": [str(checkpoint)]}
    plain, with_it = (evaluate.resolve(make(**size, lora=lora)) for lora in ([], [f"{own}:0.5"]))
    assert with_it.identity == {**plain.identity, "lora": [[with_it.loras[0]["fingerprint"], 0.5]]}
    with pytest.raises(ValueError, match=r"--lora: lora .* was trained on"):
        evaluate.resolve(make(**size, lora=f"{own},{other}"))
    with pytest.raises(ValueError, match=r"no Cinemo model is compared; add one with --model"):
        evaluate.find_adapters(make(model=["svd:x"], lora=str(own)))


def test_the_size_is_the_first_cinemo_model_s(checkpoint: Any) -> None:
    assert evaluate.frame_size(make(model=["svd:x", "builtin:tiny"])) == (320, 512)
    assert evaluate.frame_size(make(model=[str(checkpoint)])) == (320, 512)
    assert evaluate.frame_size(make(height=64, width=96)) == (64, 96)
    with pytest.raises(ValueError, match="--height 64 and --width None go together"):
        evaluate.frame_size(make(height=64))
