"""Trace where a video, a model or a dataset came from, back to the videos that a model was trained on.

Follows the files that the jobs wrote: a video's sidecar (.json), a model directory's cinemo.json, a dataset's
dataset.json. Only files of this machine are read: a URI is named but not fetched. Loads no weights.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cinemo import checkpoint, content_credentials, lora, provenance
from cinemo.sidecar import Sidecar

DATASET_NAME = "dataset.json"
MEDIA_ENDINGS = (".mp4", ".webm", ".gif", ".webp", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Node:
    """One step of the chain. fingerprint: of the content at the time of use. note: why the chain is incomplete here."""

    kind: str  # video, model, lora, run, dataset, sources, recipe, weights
    name: str
    relation: str = ""  # of the node above to this one: "trained on", ...
    fingerprint: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    came_from: list["Node"] = field(default_factory=list)


def trace(place: str) -> Node:
    """Lineage of a video or its sidecar, a dataset's folder, a LoRA's folder or file, or a MODEL as users write it.

    Raises ValueError if `place` is none of these.
    """
    path = Path(place)
    if path.suffix.lower() in MEDIA_ENDINGS:
        return of_media(path)
    if path.suffix == ".json":
        return of_video(path)
    if (path / DATASET_NAME).is_file():
        return of_dataset(str(path.absolute()))
    if path.suffix == ".safetensors" or (path / lora.WEIGHTS_NAME).is_file():
        return of_lora(place)
    directory = checkpoint.resolve(place)
    parents = of_card(checkpoint.read_card(directory).lineage)
    return Node("model", place, fingerprint=checkpoint.fingerprint(directory), came_from=parents)


def of_media(path: Path) -> Node:
    """Lineage of a video or picture: its marks, and what its sidecar says. Raises ValueError if it has neither."""
    mark = provenance.read_mark(path) if path.is_file() else None
    signed = content_credentials.read(path) if path.is_file() else None
    facts = {"marked as": mark} if mark else {}
    facts |= {"Content Credentials": signed} if signed else {}
    sidecar = path.with_suffix(".json")
    if sidecar.is_file():
        video = of_video(sidecar)
        return replace(video, facts=facts | video.facts)
    if not facts:
        raise ValueError(f"{path} has no sidecar {sidecar.name} beside it, and no mark of its origin")
    return Node("file", str(path), facts=facts, note=f"there is no sidecar {sidecar.name} beside it")


def of_video(sidecar: Path) -> Node:
    """Lineage of a video of the catalog job or the service. Raises ValueError if the file is not a sidecar."""
    contents: Sidecar = read_json(sidecar)
    if not isinstance(contents, dict) or "model_fingerprint" not in contents:
        raise ValueError(f"{sidecar} is not a video's sidecar: it has no model_fingerprint")
    request = contents.get("request") or {}
    facts: dict[str, Any] = {name: value for name, value in request.items() if name in ("prompt", "seed", "video")}
    if "motion_bucket" in contents and "motion_bucket" in request:
        facts["motion_bucket"] = f"{contents['motion_bucket']} (asked for {request['motion_bucket']})"
    facts |= run_of(sidecar.parent.parent)
    recorded = contents.get("model_lineage") or {}
    model = of_model(str(contents.get("model", "")), contents["model_fingerprint"], recorded, "animated by")
    return Node("video", str(sidecar), facts=facts, came_from=[model, *map(of_used_lora, contents.get("loras") or [])])


def of_model(name: str, fingerprint: str, recorded: dict[str, Any], relation: str) -> Node:
    """Lineage of a model that had this fingerprint when it was used.

    recorded: its card's lineage as recorded at that time, used if the directory is missing or has changed.
    """
    directory: Path | None = None
    note = "not on this machine; where it is, `cinemo info DIRECTORY` says more"
    if name.startswith("builtin:"):
        directory = checkpoint.resolve(name)
    elif name and Path(name).is_dir():
        directory = Path(name)
    if directory is not None:
        current = checkpoint.fingerprint(directory)
        if current == fingerprint:
            return Node("model", name, relation, current, came_from=of_card(checkpoint.read_card(directory).lineage))
        note = f"another model is there now, {current[:12]}"
    return Node("model", name or "unknown", relation, fingerprint, note=note, came_from=of_card(recorded))


def of_lora(place: str) -> Node:
    """Lineage of a LoRA's folder or file. Raises ValueError if there is no LoRA, or its card cannot be read."""
    file = lora.find(place)
    card = lora.read_adapter_card(file)
    facts = {"rank": card.rank, "alpha": card.alpha, "targets": card.targets, "trigger_words": card.trigger_words}
    facts = {name: value for name, value in facts.items() if value}
    note = None if card.lineage else "another tool wrote it, and it does not say what it was trained on"
    return Node("lora", place, "", lora.fingerprint(file), facts, note, of_card(card.lineage))


def of_used_lora(recorded: dict[str, Any]) -> Node:
    """Lineage of a LoRA that a video was made with. recorded: LoraFacts of the video's sidecar."""
    name, fingerprint = str(recorded.get("path", "unknown")), recorded.get("fingerprint")
    facts, note = {"weight": recorded.get("weight")}, "not on this machine"
    is_adapter = Path(name).is_file() or (Path(name) / lora.WEIGHTS_NAME).is_file()  # else a name in a service
    if is_adapter:
        found = of_lora(name)
        if found.fingerprint == fingerprint:
            return replace(found, relation="with", facts=facts | found.facts)
        note = f"another LoRA is there now, {str(found.fingerprint)[:12]}"
    return Node("lora", name, "with", fingerprint, facts, note, of_card(recorded.get("lineage") or {}))


def of_card(lineage: dict[str, Any]) -> list[Node]:
    """Origins that a model's card records: its training run, the training data, the model it started from."""
    if "recipe" in lineage:
        facts = {name: value for name, value in lineage.items() if name != "recipe"}
        return [Node("recipe", lineage["recipe"], "made by", facts=facts)]
    if "dataset_fingerprint" not in lineage:
        return []
    facts = {name: lineage[name] for name in ("output", "steps", "ema_decay", "code_version") if lineage.get(name)}
    run = Node("run", lineage.get("run_id") or "that was not tracked", "trained by", facts=facts)
    return [run, trained_on(lineage), *started_from(lineage)]


def trained_on(lineage: dict[str, Any]) -> Node:
    """The dataset in a model's card, or the videos, if clips were made from them during training."""
    place, sources = lineage.get("dataset"), lineage.get("sources")
    if place and place == sources:
        return Node("sources", place, "trained on", lineage["dataset_fingerprint"])
    return of_dataset(place or "", lineage["dataset_fingerprint"], sources, "trained on")


def started_from(lineage: dict[str, Any]) -> list[Node]:
    """The model whose weights a training started from; an empty list for random weights."""
    init = lineage.get("init", "none")
    if init == "none":
        return []
    if init.startswith("lavie:"):
        return [Node("weights", init.removeprefix("lavie:"), "started from", facts={"of": "LaVie"})]
    if "init_fingerprint" not in lineage:  # models of earlier versions
        return [Node("model", init, "started from")]
    return [of_model(init, lineage["init_fingerprint"], {}, "started from")]


def of_dataset(place: str, fingerprint: str | None = None, sources: str | None = None, relation: str = "") -> Node:
    """Lineage of a dataset's folder. fingerprint: recorded at the time of use. sources: used without the folder."""
    path = Path(place) / DATASET_NAME
    if not place or "://" in place or not path.is_file():
        why = "not on this machine" if place else "its place was not recorded"
        parents = [Node("sources", sources, "made from")] if sources else []
        return Node("dataset", place or "unknown", relation, fingerprint, note=why, came_from=parents)
    manifest = read_json(path)
    current, counts = manifest.get("fingerprint"), manifest.get("counts", {})
    facts = {
        "clips": counts.get("clips"),
        "size": ", ".join(
            f"{shape.get('num_frames')} x {shape.get('height')} x {shape.get('width')}"
            for shape in manifest.get("shapes", [manifest])
        ),
    }
    facts |= run_of(Path(place))
    changed = fingerprint not in (None, current)
    note = f"another dataset is there now, {str(current)[:12]}" if changed else None
    videos = {"videos": counts.get("videos"), "listed_in": f"{place}/videos"}
    parents = [Node("sources", manifest.get("input", "unknown"), "made from", facts=videos)]
    return Node("dataset", place, relation, fingerprint or current, facts, note, parents)


def run_of(output: Path) -> dict[str, Any]:
    """MLflow run of the job that wrote this output, from its summary.json; empty without one."""
    summary = output / "summary.json"
    return {"run_id": read_json(summary).get("run_id")} if summary.is_file() else {}


def lines(chain: Node, depth: int = 0) -> Iterator[str]:
    """Yield the chain as text: one line per node, indented one level more for each step back."""
    title = " ".join(filter(None, [chain.relation, chain.kind, chain.name]))
    title += f" ({chain.fingerprint[:12]})" if chain.fingerprint else ""
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chain.facts.items() if value is not None)
    yield "  " * depth + ": ".join(filter(None, [title, facts]))
    if chain.note:
        yield "  " * (depth + 1) + f"! {chain.note}"
    for parent in chain.came_from:
        yield from lines(parent, depth + 1)


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ValueError if it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
