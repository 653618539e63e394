"""Training a LoRA: exact through every ZeRO stage, a small file that says where it came from, and clear refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cinemo import checkpoint, lineage, lora
from pipelines.core import models, storage, tracking
from pipelines.dataset import reader
from pipelines.train import data, export, state
from pipelines.train import job as train
from pipelines.train.batch import caption_features, with_trigger_words
from pipelines.train.config import TrainConfig
from tests.pipelines.conftest import rows
from tests.pipelines.train.lora_hops import HOPS

ROOT = Path(__file__).parents[3]


def test_every_stage_trains_the_adapters_alone_and_continues_any_other_exactly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pipelines.train.lora_hops", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [hop["stage"] for hop in found] == list(HOPS)
    for hop in found:
        assert hop["losses"] < 1e-6, hop
        assert hop["weights"] < 1e-6, hop  # a step moves a weight by 1e-3
        assert hop["bytes"] < 300_000, hop  # the base alone has three million


@pytest.fixture
def config(prepared: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        dataset=prepared, output=str(tmp_path / "run"), lora_rank=4, lora_targets="motion", trigger_words="spin",
        total_batch=4, validation_share=0.0,
    )  # fmt: skip


@pytest.fixture
def exported(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OUTPUT/lora of a run whose checkpoint has ones in every adapter."""
    weights = {name: {"fp32": [torch.ones(w.numel())]} for name, w in state.trained_weights(data.load_unet(config))}
    monkeypatch.setattr(export, "read_fragments", lambda saved: (weights, 0))
    description = reader.read_description(config.dataset)
    assert export.export(config, description, "unused", {}, "run-1") == lora.fingerprint(
        lora.find(Path(config.output) / "lora")
    )
    return Path(config.output) / "lora"


def test_a_lora_names_its_base_its_words_and_its_data_and_fits_the_base_alone(
    config: TrainConfig, exported: Path, several_shapes: str, tmp_path: Path
) -> None:
    builtin, adapter = checkpoint.resolve("builtin:tiny"), lora.read(exported)
    assert (adapter.card.rank, adapter.card.alpha, adapter.card.targets) == (4, 4, "motion")
    assert (adapter.card.trigger_words, adapter.card.sizes, adapter.card.lengths) == ("spin", [(64, 64)], [4])
    assert adapter.card.base_fingerprint == checkpoint.fingerprint(builtin)
    lora.check_base(adapter.card, builtin, "builtin:tiny", str(exported))
    unet = checkpoint.load_unet(builtin)
    lora.attach(unet, adapter, "spin")
    assert all(weight.eq(1).all() for name, weight in unet.named_parameters() if "lora_" in name)
    assert adapter.path.stat().st_size < 1e6

    chain = lineage.trace(str(exported))
    run, dataset, start = chain.came_from
    assert (chain.kind, chain.fingerprint, chain.facts["trigger_words"]) == ("lora", adapter.fingerprint, "spin")
    assert (run.name, dataset.name, start.name, start.kind) == ("run-1", config.dataset, "builtin:tiny", "model")
    assert (start.relation, start.note) == ("started from", None)

    # The card describes the dataset as it was when the job began; it may be prepared again meanwhile, or moved.
    begun = reader.read_description(several_shapes)
    several = config.model_copy(update={"dataset": str(tmp_path / "moved"), "output": str(tmp_path / "b")})
    export.export(several, begun, "unused", {}, "run-1")
    card = lora.read(tmp_path / "b" / "lora").card
    assert (card.sizes, card.lengths) == ([(64, 96), (96, 64)], [4, 3])
    assert card.lineage["dataset_fingerprint"] == begun["fingerprint"]


def test_an_export_is_on_the_disk_before_its_run_is_marked_as_finished(
    config: TrainConfig, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(storage, "sync", synced.append)
    export.export(config, reader.read_description(config.dataset), "unused", {}, "run-1")
    assert {str(path) for path in (exported.parent, exported, *exported.iterdir())} <= set(synced)


def test_the_registry_takes_a_lora_and_gives_it_back(exported: Path, tmp_path: Path, tracking_uri: str) -> None:
    tags = {"lora_fingerprint": lora.fingerprint(lora.find(exported))}
    with tracking.start("train", str(tmp_path / "run"), tracking_uri, {}) as log:
        assert models.register("spin@candidate", str(exported), tags, log) == "models:/spin/1"
        assert models.register("spin@candidate", str(exported), tags, log) == "models:/spin/1"
    name = models.absolute("models:/spin@candidate", tracking_uri, str(tmp_path))
    assert models.plain(name) == "models:/spin/1"
    assert lora.fingerprint(lora.find(models.resolve_lora(name))) == tags["lora_fingerprint"]


def test_trigger_words_come_before_captions_that_lack_them(prepared: str, config: TrainConfig) -> None:
    assert with_trigger_words("a cat", "spin") == "spin, a cat"
    assert with_trigger_words("", "spin") == "spin"
    assert with_trigger_words("a cat, spin", "spin") == with_trigger_words("a cat, spin", "") == "a cat, spin"
    clip = data.open_clips(config, data.start(config, config.output))[0]
    asked: list[str] = []

    def embed(caption: str) -> torch.Tensor:
        asked.append(caption)
        return torch.zeros(2, 3)

    caption_features(clip, embed, "spin")
    assert asked == [f"spin, {rows(prepared)[0]['caption']}"] or asked == [f"spin, {clip.caption}"]


def settings(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"dataset": "d", "output": "o", "lora_rank": 16, **changes})


def test_a_lora_needs_a_trained_model_and_flags_that_go_together(config: TrainConfig) -> None:
    assert settings(preset="base").init == "maxin-cn/Cinemo"
    assert (settings().init, settings().alpha, settings(lora_alpha=8).alpha) == ("builtin:tiny", 16, 8)
    rates = [settings(**more).learning_rate for more in ({}, {"init": "/a/model"}, {"preset": "base"})]
    assert rates == [5e-3, 1e-4, 1e-4]
    refused: list[tuple[dict[str, object], str]] = [
        ({"lora_rank": 0}, r"greater than or equal to 1"),
        ({"init": "none"}, r"--lora-rank 16 trains adapters of a trained model, which --init none is not; give"),
        ({"init": "lavie:x.pt"}, r"--init lavie:x.pt is not; give"),
        ({"compile": True}, r"--compile does not go with --lora-rank"),
        ({"lora_targets": "text"}, r"'attention', 'motion' or 'all'"),
        ({"lora_rank": None, "lora_alpha": 8}, r"--lora-alpha, .* need --lora-rank"),
        ({"lora_rank": None, "trigger_words": "spin"}, r"--trigger-words need --lora-rank"),
    ]
    for changes, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            settings(**changes)
    with pytest.raises(ValueError, match=r"--prediction-type epsilon does not go with --lora-rank, because builtin:"):
        train.check_prediction_type(config.model_copy(update={"prediction_type": "epsilon"}))
