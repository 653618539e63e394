"""Resolve a MODEL to a directory on this node, wherever the model is kept.

A MODEL is what cinemo takes (builtin:tiny, a directory, a hub id), or a name in MLflow's registry: models:/NAME@ALIAS
or models:/NAME/VERSION, then # and the registry's address if it is not the job's own. The driver calls `absolute` once;
after that, every process on every node calls `resolve`.
"""

import functools
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinemo import checkpoint
from cinemo.errors import first_line
from pipelines.core import cache, storage, tracking

DEFAULT_ALIAS = "candidate"  # MLflow reserves "latest"
REGISTERED = re.compile(r"models:/(?P<name>[^/@#]+)(/(?P<version>\d+)|@(?P<alias>[\w-]+))(#(?P<registry>.+))?")


def absolute(model: str, tracking_uri: str | None, output: str) -> str:
    """Make a MODEL as users write it mean the same in every process; it may also be "none" or lavie:PATH.

    A directory becomes absolute; an alias becomes its current version, with the registry's address (tracking_uri and
    output: as in tracking.address). Raises ValueError when there is no such name or no registry.
    """
    if not model.startswith("models:"):
        prefix, colon, path = model.rpartition(":") if model.startswith("lavie:") else ("", "", model)
        return prefix + colon + os.path.abspath(path) if model != "none" and os.path.exists(path) else model
    if (parts := REGISTERED.fullmatch(model)) is None:
        raise ValueError(f"model {model} is not a registered name; write models:/NAME@ALIAS or models:/NAME/VERSION")
    registry = parts["registry"] or tracking.address(tracking_uri, output)
    version = parts["version"] or tracking.find_version(parts["name"], None, parts["alias"], registry).number
    return f"models:/{parts['name']}/{version}#{registry}"


def plain(model: str) -> str:
    """A MODEL returned by `absolute`, without the registry's address."""
    return model.partition("#")[0] if model.startswith("models:") else model


def resolve(model: str) -> Path:
    """Directory on this node of a MODEL returned by `absolute`. Raises ValueError when there is no such model."""
    return checkpoint.resolve(fetch(model) if model.startswith("models:") else model)


def resolve_lora(place: str) -> str:
    """Place of an adapter on this node, for cinemo.lora.find. Raises ValueError.

    place: returned by `absolute`. A registered adapter is downloaded, and its folder returned; any other place (folder,
    file or hub id) is returned as it is.
    """
    return str(fetch(place)) if place.startswith("models:") else place


def fingerprint(directory: Path) -> str:
    """checkpoint.fingerprint, cached per process until a file's name, size or modification time changes."""
    stats = {path: path.stat() for path in directory.rglob("*") if path.is_file()}
    return _fingerprint(directory, frozenset((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()))


@functools.lru_cache(maxsize=64)
def _fingerprint(directory: Path, files: frozenset[tuple[Path, int, int]]) -> str:
    return checkpoint.fingerprint(directory)


def check_unchanged(model: str, directory: Path, recorded: str, part: str = "") -> None:
    """Check that a MODEL's directory on this node, or a part of it such as vae, has the fingerprint that was recorded.

    To be called after the weights are loaded, so that files that were replaced meanwhile are found too. A snapshot of
    the hub is not checked: its commit never changes, and its folder may hold more files on one node than on another.
    Raises ValueError.
    """
    if directory.parent.name != "snapshots" and (found := fingerprint(directory / part)) != recorded:
        raise ValueError(
            f"{f'{part} of ' * bool(part)}model {plain(model)} has fingerprint {found[:12]} here, and {recorded[:12]} "
            "when the job began; run the job again, with the same files on every node"
        )


def publish(directory: Path, uri: str) -> str:
    """Copy a model directory to a URI; returns its fingerprint. Until the copy is complete, `resolve` refuses it."""
    mark, found = storage.join(uri, checkpoint.INCOMPLETE), fingerprint(directory)
    storage.put(mark, found.encode())  # a bucket cannot rename folders
    storage.upload(directory, uri)
    storage.remove(mark)
    return found


@dataclass(frozen=True)
class Facts:
    """Properties of a model that are known without loading it."""

    card: checkpoint.ModelCard
    scheduler: Any
    factor: int  # pixels per latent cell, per side
    fingerprint: str


def look_up(model: str) -> Facts:
    """Read the Facts of a MODEL from its directory; reads every file, for the fingerprint. Raises ValueError."""
    directory = resolve(model)
    return Facts(
        card=checkpoint.read_card(directory),
        scheduler=checkpoint.load_scheduler(directory),
        factor=factor(directory),
        fingerprint=fingerprint(directory),
    )


def factor(directory: Path) -> int:
    """Pixels per latent cell, per side, of a model directory's VAE."""
    vae = json.loads((directory / checkpoint.vae_name(directory) / "config.json").read_text())
    return checkpoint.vae_factor(vae)


@functools.cache
def fetch(model: str) -> Path:
    """Directory of this node's copy of a registered model, downloaded once. Raises ValueError.

    Copies are named by their fingerprint, which is checked before a copy gets its name (cache.py).
    """
    parts = REGISTERED.fullmatch(model)
    assert parts is not None, f"{model} has not been through absolute()"
    assert parts["version"], f"{model} has not been through absolute()"
    assert parts["registry"], f"{model} has not been through absolute()"
    version = tracking.find_version(parts["name"], parts["version"], None, parts["registry"])
    if not version.fingerprint:
        raise ValueError(
            f"model {model} has no tag {tracking.FINGERPRINT}; set it to the fingerprint that `cinemo info` shows"
        )

    def download(folder: Path) -> Path:
        files = tracking.download(version.source, folder, parts["registry"])
        if (seen := checkpoint.fingerprint(files)) != version.fingerprint:
            raise ValueError(
                f"model {model} has fingerprint {seen} at {version.source}, but was registered with "
                f"{version.fingerprint}; register it again, from its training"
            )
        return files

    try:
        return cache.once_per_node("models", version.fingerprint, download)
    except OSError as error:
        raise ValueError(f"model {model} cannot be copied from {version.source} to this node: {error}") from error


def check_name(name: str) -> str:
    """Return `name` if it is NAME or NAME@ALIAS as `register` takes it; else raise ValueError."""
    if not re.fullmatch(r"\w[\w.-]*(@[\w-]+)?", name) or re.search(r"@(?i:latest|v\d+)$", name):
        raise ValueError(
            "should be NAME or NAME@ALIAS in letters, digits, - and _, and no alias that MLflow keeps (latest, v1)"
        )
    return name


def register(name: str, model: str, tags: Mapping[str, str], log: tracking.Log) -> str | None:
    """Put the directory of a model or a LoRA (path or URI) into the registry; returns models:/NAME/VERSION.

    name: NAME or NAME@ALIAS. tags: of the version; tracking.FINGERPRINT is computed if it is not among them. An error
    must not fail a finished training: it prints a warning with the remedy and returns None.
    """
    name, _, alias = name.partition("@")
    alias = alias or DEFAULT_ALIAS
    try:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(model) if storage.is_local(model) else storage.download(model, Path(folder) / "model")
            tags = {tracking.FINGERPRINT: fingerprint(directory), **tags}
            version = tracking.register(log, directory, name, alias, tags)
    except Exception as error:
        print(
            f"warning: {model} is complete, but not registered as {name}@{alias} ({type(error).__name__}: "
            f"{first_line(error)})"
            "; once MLflow answers, the same command registers it, and trains no more",
            file=sys.stderr,
        )
        return None
    return f"models:/{name}/{version.number}"
