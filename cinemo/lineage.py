"""Where a video, a model or a dataset came from: the chain of what made it, down to the videos that it was trained on.

Follows what the jobs wrote: a video's sidecar (.json), a model directory's cinemo.json, a dataset's dataset.json. Knows
these files, on this machine: of a URI it says the name, and nothing is fetched. Loads no weights.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cinemo import checkpoint

DATASET_NAME = "dataset.json"
VIDEO_ENDINGS = (".mp4", ".gif", ".webp")


@dataclass(frozen=True)
class Node:
    """A thing, and what it came from. fingerprint: what it was when it was used. note: where the chain is not whole."""

    kind: str  # video, model, run, dataset, sources, recipe, weights
    name: str
    relation: str = ""  # of the node above to this one: "trained on", ...
    fingerprint: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    note: str | None = None
    came_from: list["Node"] = field(default_factory=list)


def trace(place: str) -> Node:
    """The chain of a video's sidecar (or the video beside it), a dataset's folder, or a MODEL as users write it.

    Raises ValueError when it is none of these.
    """
    path = Path(place)
    if path.suffix.lower() in VIDEO_ENDINGS:
        if not path.with_suffix(".json").is_file():
            raise ValueError(f"{place} has no sidecar {path.with_suffix('.json').name} beside it; name a job's video")
        return of_video(path.with_suffix(".json"))
    if path.suffix == ".json":
        return of_video(path)
    if (path / DATASET_NAME).is_file():
        return of_dataset(str(path.absolute()))
    directory = checkpoint.resolve(place)
    parents = of_card(checkpoint.read_card(directory).lineage)
    return Node("model", place, fingerprint=checkpoint.fingerprint(directory), came_from=parents)


def of_video(sidecar: Path) -> Node:
    """The chain of a video of the catalog job or the service. Raises ValueError for a file that is no sidecar."""
    said = read_json(sidecar)
    if not isinstance(said, dict) or "model_fingerprint" not in said:
        raise ValueError(f"{sidecar} is no sidecar of a video: it says no model_fingerprint")
    request = said.get("request") or {}
    facts = {name: request[name] for name in ("prompt", "seed", "video") if name in request}
    if "motion_bucket" in said and "motion_bucket" in request:
        facts["motion_bucket"] = f"{said['motion_bucket']} (asked for {request['motion_bucket']})"
    facts |= run_of(sidecar.parent.parent)
    recorded = said.get("model_lineage") or {}
    model = of_model(str(said.get("model", "")), said["model_fingerprint"], recorded, "animated by")
    return Node("video", str(sidecar), facts=facts, came_from=[model])


def of_model(name: str, fingerprint: str, recorded: dict[str, Any], relation: str) -> Node:
    """The chain of a model that had this fingerprint when it was used.

    recorded: its card's lineage as it was written down then, for when its directory is not here.
    """
    directory: Path | None = None
    note = "not on this machine; where it is, `cinemo info DIRECTORY` says more"
    if name.startswith("builtin:"):
        directory = checkpoint.resolve(name)
    elif name and Path(name).is_dir():
        directory = Path(name)
    if directory is not None:
        found = checkpoint.fingerprint(directory)
        if found == fingerprint:
            return Node("model", name, relation, found, came_from=of_card(checkpoint.read_card(directory).lineage))
        note = f"another model is there now, {found[:12]}"
    return Node("model", name or "unknown", relation, fingerprint, note=note, came_from=of_card(recorded))


def of_card(lineage: dict[str, Any]) -> list[Node]:
    """What a model's card says that it came from: its training run, what that was trained on, what it started from."""
    if "recipe" in lineage:
        facts = {name: value for name, value in lineage.items() if name != "recipe"}
        return [Node("recipe", lineage["recipe"], "made by", facts=facts)]
    if "dataset_fingerprint" not in lineage:
        return []
    facts = {name: lineage[name] for name in ("output", "steps", "ema_decay", "code_version") if lineage.get(name)}
    run = Node("run", lineage.get("run_id") or "that was not tracked", "trained by", facts=facts)
    return [run, trained_on(lineage), *started_from(lineage)]


def trained_on(lineage: dict[str, Any]) -> Node:
    """The dataset in a model's card, or the videos themselves, where training made clips of them on the way."""
    place, sources = lineage.get("dataset"), lineage.get("sources")
    if place and place == sources:
        return Node("sources", place, "trained on", lineage["dataset_fingerprint"])
    return of_dataset(place or "", lineage["dataset_fingerprint"], sources, "trained on")


def started_from(lineage: dict[str, Any]) -> list[Node]:
    """The model whose weights a training started from; none, where it started from random ones."""
    init = lineage.get("init", "none")
    if init == "none":
        return []
    if init.startswith("lavie:"):
        return [Node("weights", init.removeprefix("lavie:"), "started from", facts={"of": "LaVie"})]
    if "init_fingerprint" not in lineage:  # models of earlier versions
        return [Node("model", init, "started from")]
    return [of_model(init, lineage["init_fingerprint"], {}, "started from")]


def of_dataset(place: str, fingerprint: str | None = None, sources: str | None = None, relation: str = "") -> Node:
    """The chain of a dataset's folder. fingerprint: as it was when it was used. sources: what is known without it."""
    path = Path(place) / DATASET_NAME
    if not place or "://" in place or not path.is_file():
        why = "not on this machine" if place else "where it is was not recorded"
        parents = [Node("sources", sources, "made from")] if sources else []
        return Node("dataset", place or "unknown", relation, fingerprint, note=why, came_from=parents)
    said = read_json(path)
    found, counts = said.get("fingerprint"), said.get("counts", {})
    facts = {
        "clips": counts.get("clips"),
        "size": f"{said.get('num_frames')} x {said.get('height')} x {said.get('width')}",
    }
    facts |= run_of(Path(place))
    changed = fingerprint not in (None, found)
    note = f"another dataset is there now, {str(found)[:12]}" if changed else None
    videos = {"videos": counts.get("videos"), "listed_in": f"{place}/videos"}
    parents = [Node("sources", said.get("input", "unknown"), "made from", facts=videos)]
    return Node("dataset", place, relation, fingerprint or found, facts, note, parents)


def run_of(output: Path) -> dict[str, Any]:
    """The run in MLflow of the job that wrote this output; nothing where it left no summary."""
    summary = output / "summary.json"
    return {"run_id": read_json(summary).get("run_id")} if summary.is_file() else {}


def lines(chain: Node, depth: int = 0) -> Iterator[str]:
    """The chain as text, a line a node, further in the further back."""
    title = " ".join(filter(None, [chain.relation, chain.kind, chain.name]))
    title += f" ({chain.fingerprint[:12]})" if chain.fingerprint else ""
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chain.facts.items() if value is not None)
    yield "  " * depth + ": ".join(filter(None, [title, facts]))
    if chain.note:
        yield "  " * (depth + 1) + f"! {chain.note}"
    for parent in chain.came_from:
        yield from lines(parent, depth + 1)


def read_json(path: Path) -> Any:
    """The value in a file. Raises ValueError when there is none, or it is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
