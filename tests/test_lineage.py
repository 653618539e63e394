"""The chain from a video to the videos that its model was trained on, and what is said where it is broken."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cinemo import checkpoint as model_directory
from cinemo import lora
from cinemo.lineage import Node, lines, trace


def write_dataset(folder: Path, **changes: Any) -> Path:
    """A folder with the descriptions that the prepare job leaves."""
    folder.mkdir(exist_ok=True)
    counts = {"videos": 50, "clips": 200}
    said = {"input": "/videos/webvid", "num_frames": 16, "height": 64, "width": 96, "counts": counts}
    (folder / "dataset.json").write_text(json.dumps({**said, "fingerprint": "d" * 64, **changes}))
    (folder / "summary.json").write_text('{"run_id": "prepare-run"}')
    return folder


def write_model(source: Path, folder: Path, **lineage: Any) -> tuple[str, str]:
    """(directory, fingerprint) of a model whose card says so."""
    card = model_directory.ModelCard(lineage=lineage)
    model = model_directory.export_model(source, model_directory.load_unet(source), folder, card)
    return str(model), model_directory.fingerprint(model)


def write_sidecar(path: Path, model: str, fingerprint: str, **more: Any) -> str:
    request = {"prompt": "a shark swims", "seed": 7, "motion_bucket": 12}
    said = {"model": model, "model_fingerprint": fingerprint, "request": request, "motion_bucket": 11, **more}
    path.write_text(json.dumps(said))
    return str(path)


def find(chain: Node, kind: str) -> list[Node]:
    return [chain] * (chain.kind == kind) + [found for parent in chain.came_from for found in find(parent, kind)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, Any]:
    """A first model, a second one that was trained from it, a dataset for both, and a video of the second."""
    folder = tmp_path_factory.mktemp("made")
    dataset = str(write_dataset(folder / "dataset"))
    trained = {"dataset": dataset, "dataset_fingerprint": "d" * 64, "sources": "/videos/webvid"}
    first, first_print = write_model(checkpoint, folder / "first", **trained, init="lavie:/lavie.pt", run_id="run-1")
    second, print_ = write_model(
        checkpoint, folder / "second", **trained, init=first, init_fingerprint=first_print, run_id="run-2", steps=300
    )
    (folder / "out" / "videos").mkdir(parents=True)
    (folder / "out" / "summary.json").write_text('{"run_id": "animate-run"}')
    sidecar = write_sidecar(folder / "out" / "videos" / "video.json", second, print_)
    return {"folder": folder, "dataset": dataset, "first": first, "second": second, "print": print_, "sidecar": sidecar}


def test_a_video_is_followed_to_the_sources_of_every_model_before_it(made: dict[str, Any]) -> None:
    chain = trace(made["sidecar"])
    asked = {"prompt": "a shark swims", "seed": 7, "motion_bucket": "11 (asked for 12)"}
    assert chain.facts == {**asked, "run_id": "animate-run"}
    assert [model.name for model in find(chain, "model")] == [made["second"], made["first"]]
    assert [run.name for run in find(chain, "run")] == ["run-2", "run-1"]
    assert {dataset.name for dataset in find(chain, "dataset")} == {made["dataset"]}
    assert find(chain, "dataset")[0].facts["run_id"] == "prepare-run"
    assert [sources.name for sources in find(chain, "sources")] == ["/videos/webvid"] * 2
    assert find(chain, "sources")[0].facts["videos"] == 50
    assert [weights.name for weights in find(chain, "weights")] == ["/lavie.pt"]
    assert not any(line.lstrip().startswith("!") for line in lines(chain))  # nothing is missing
    video = Path(made["sidecar"]).with_suffix(".mp4")
    video.touch()
    assert trace(str(video)) == chain


def test_text_has_a_line_for_each_thing_further_in_the_further_back(made: dict[str, Any]) -> None:
    shown = list(lines(trace(made["sidecar"])))
    assert [len(line) - len(line.lstrip()) for line in shown] == [0, 2, 4, 4, 6, 4, 6, 6, 8, 6]
    assert shown[1] == f"  animated by model {made['second']} ({made['print'][:12]})"
    assert shown[2] == "    trained by run run-2: steps 300"


def test_a_model_that_was_replaced_or_is_away_is_said_and_what_was_recorded_goes_on(made: dict[str, Any]) -> None:
    recorded = {"dataset": "s3://bucket/ds", "dataset_fingerprint": "e" * 64, "sources": "s3://bucket/videos"}
    folder = made["folder"]
    away = trace(write_sidecar(folder / "away.json", "/nowhere", "f" * 64, model_lineage=recorded))
    (model,) = find(away, "model")
    assert "not on this machine" in str(model.note)
    assert "not on this machine" in str(find(away, "dataset")[0].note)
    assert find(away, "sources")[0].name == "s3://bucket/videos"
    replaced = trace(write_sidecar(folder / "replaced.json", made["first"], "f" * 64))
    assert "another model is there now" in str(find(replaced, "model")[0].note)
    assert not find(replaced, "dataset")


def test_the_loras_of_a_video_are_followed_too(made: dict[str, Any], tmp_path: Path) -> None:
    trained = {"dataset": made["dataset"], "dataset_fingerprint": "d" * 64, "init": "builtin:tiny", "run_id": "run-3"}
    file = lora.write(tmp_path / "lora", {"x": torch.zeros(1)}, {}, lora.AdapterCard("builtin:tiny", lineage=trained))
    there = {"path": str(file.parent), "fingerprint": lora.fingerprint(file), "weight": 0.5, "lineage": trained}
    gone, changed = {**there, "path": "/nowhere"}, {**there, "fingerprint": "f" * 64}
    sidecar = write_sidecar(tmp_path / "a.json", made["second"], made["print"], loras=[there, gone, changed])
    used = find(trace(sidecar), "lora")
    assert [(node.relation, node.facts["weight"], find(node, "run")[0].name) for node in used] == [
        ("with", 0.5, "run-3")
    ] * 3
    notes = [None, "not on this machine", f"another LoRA is there now, {there['fingerprint'][:12]}"]
    assert [node.note for node in used] == notes


def test_a_dataset_that_was_made_anew_is_said(made: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    dataset = str(write_dataset(tmp_path / "ds", fingerprint="9" * 64))
    model, _ = write_model(checkpoint, tmp_path / "m", dataset=dataset, dataset_fingerprint="d" * 64, init="none")
    assert "another dataset is there now, 999999999999" in str(find(trace(model), "dataset")[0].note)
    assert trace(dataset).fingerprint == "9" * 64


def test_a_training_from_videos_has_no_dataset_between(checkpoint: Path, tmp_path: Path) -> None:
    lineage = {"dataset": "/clips", "sources": "/clips", "dataset_fingerprint": "d" * 64, "init": "none"}
    model, _ = write_model(checkpoint, tmp_path / "m", **lineage)
    assert [(parent.relation, parent.kind) for parent in trace(model).came_from] == [
        ("trained by", "run"),
        ("trained on", "sources"),
    ]


def test_the_built_in_model_says_its_recipe_and_the_official_layout_nothing(checkpoint: Path) -> None:
    assert [parent.name for parent in trace("builtin:tiny").came_from] == ["recipes/builtin_tiny"]
    assert trace(str(checkpoint)).came_from == []


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.mp4", "", "has no sidecar x.json beside it, and no mark"),
        ("y.json", "[1]", "is not a video's sidecar"),
        ("y.json", "{", "cannot be read"),
    ],
)
def test_a_file_that_is_none_of_them_is_one_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        trace(str(tmp_path / name))
