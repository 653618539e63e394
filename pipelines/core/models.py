"""A MODEL of a job -> its directory on this node, wherever the model is kept.

A MODEL is what cinemo takes (builtin:tiny, a directory, a hub id), or a name in MLflow's registry: models:/NAME@ALIAS
or models:/NAME/VERSION, then # and the registry's address where it is not the job's own. The driver says `absolute`,
once; after that every process on every node says `resolve`. Knows names, and this node's copies of registered models.
Knows nothing of MLflow's client, or of what is in a model.
"""

import fcntl
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinemo import checkpoint
from pipelines.core import storage, tracking

DEFAULT_ALIAS = "candidate"  # MLflow keeps "latest" to itself
REGISTERED = re.compile(r"models:/(?P<name>[^/@#]+)(/(?P<version>\d+)|@(?P<alias>[\w-]+))(#(?P<registry>.+))?")


def absolute(model: str, tracking_uri: str | None, output: str) -> str:
    """A MODEL as users write it, the same for every process from now on; it may be "none" or lavie:PATH too.

    A directory becomes absolute, an alias the version that has it now, with the registry's address (tracking_uri and
    output: as in tracking.address). Raises ValueError when there is no such name or no registry.
    """
    if not model.startswith("models:"):
        kind, colon, path = model.rpartition(":") if model.startswith("lavie:") else ("", "", model)
        return kind + colon + os.path.abspath(path) if model != "none" and os.path.exists(path) else model
    if (parts := REGISTERED.fullmatch(model)) is None:
        raise ValueError(f"model {model} is no name in the registry; write models:/NAME@ALIAS or models:/NAME/VERSION")
    registry = parts["registry"] or tracking.address(tracking_uri, output)
    version = parts["version"] or tracking.find_version(parts["name"], None, parts["alias"], registry).number
    return f"models:/{parts['name']}/{version}#{registry}"


def plain(model: str) -> str:
    """A MODEL that `absolute` made, without the registry's address."""
    return model.partition("#")[0] if model.startswith("models:") else model


def resolve(model: str) -> Path:
    """The directory on this node of a MODEL that `absolute` made. Raises ValueError when there is no such model."""
    return checkpoint.resolve(fetch(model) if model.startswith("models:") else model)


def fingerprint(directory: Path) -> str:
    """checkpoint.fingerprint, computed once a process: again only when a file's name, size or time has changed."""
    stats = {path: path.stat() for path in directory.rglob("*") if path.is_file()}
    return _fingerprint(directory, frozenset((path, found.st_size, found.st_mtime_ns) for path, found in stats.items()))


@functools.lru_cache(maxsize=64)
def _fingerprint(directory: Path, files: frozenset[tuple[Path, int, int]]) -> str:
    return checkpoint.fingerprint(directory)


@dataclass(frozen=True)
class Facts:
    """What is known of a model without loading it."""

    card: checkpoint.ModelCard
    scheduler: Any
    factor: int  # pixels a latent cell, per side
    fingerprint: str


def look_up(model: str) -> Facts:
    """What a MODEL's directory says of itself; reads all of it once. Raises ValueError as `resolve`."""
    directory = resolve(model)
    vae = json.loads((directory / checkpoint.vae_name(directory) / "config.json").read_text())
    return Facts(
        card=checkpoint.read_card(directory),
        scheduler=checkpoint.load_scheduler(directory),
        factor=checkpoint.vae_factor(vae),
        fingerprint=fingerprint(directory),
    )


@functools.cache
def fetch(model: str) -> Path:
    """This node's copy of a registered model; one that is there already is not downloaded again. Raises ValueError.

    Copies are in CINEMO_CACHE, or ~/.cache/cinemo, by the name of their fingerprint, which each was checked against
    before it got that name.
    """
    parts = REGISTERED.fullmatch(model)
    assert parts is not None, f"{model} has not been through absolute()"
    assert parts["version"], f"{model} has not been through absolute()"
    assert parts["registry"], f"{model} has not been through absolute()"
    found = tracking.find_version(parts["name"], parts["version"], None, parts["registry"])
    if not found.fingerprint:
        raise ValueError(
            f"model {model} has no tag {tracking.FINGERPRINT}; set it to the fingerprint that `cinemo info` says"
        )
    cache = Path(os.environ.get("CINEMO_CACHE") or Path.home() / ".cache" / "cinemo") / "models"
    copy = cache / found.fingerprint
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{found.fingerprint}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of a node's processes downloads; the others wait, and find the copy
        if copy.is_dir():
            return copy
        aside = Path(tempfile.mkdtemp(prefix=".", dir=cache))
        try:
            files = tracking.download(found.source, aside, parts["registry"])
            if (seen := checkpoint.fingerprint(files)) != found.fingerprint:
                raise ValueError(
                    f"model {model} has fingerprint {seen} at {found.source}, but was registered with "
                    f"{found.fingerprint}; register it again, from its training"
                )
            files.rename(copy)
        except OSError as error:
            raise ValueError(f"model {model} cannot be copied from {found.source} to {cache}: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return copy


def check_name(name: str) -> str:
    """NAME or NAME@ALIAS as `register` takes it; returns it. Raises ValueError."""
    if not re.fullmatch(r"\w[\w.-]*(@[\w-]+)?", name) or re.search(r"@(?i:latest|v\d+)$", name):
        raise ValueError(
            "should be NAME or NAME@ALIAS in letters, digits, - and _, and no alias that MLflow keeps (latest, v1)"
        )
    return name


def register(name: str, model: str, tags: Mapping[str, str], log: tracking.Log) -> str | None:
    """Put a model directory (path or URI) into the registry; returns models:/NAME/VERSION.

    name: NAME or NAME@ALIAS. tags: tracking.FINGERPRINT among them. Nothing that goes wrong here is worth a finished
    training: then a warning says what to do, and None is returned.
    """
    name, _, alias = name.partition("@")
    alias = alias or DEFAULT_ALIAS
    try:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(model) if storage.is_local(model) else storage.download(model, Path(folder) / "model")
            version = tracking.register(log, directory, name, alias, tags)
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        print(
            f"warning: {model} is complete, but not registered as {name}@{alias} ({type(error).__name__}: {first_line})"
            "; once MLflow answers, the same command registers it, and trains no more",
            file=sys.stderr,
        )
        return None
    return f"models:/{name}/{version.number}"
