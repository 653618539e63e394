"""LoRA adapters of animation requests: PLACE[:weight] is looked up once, and a replica switches adapters by batch."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cinemo import lora
from cinemo.errors import redact
from cinemo.sidecar import Lora, LoraFacts
from pipelines.animate.config import AnimateConfig
from pipelines.animate.request import SettingError
from pipelines.core import models, storage

MOST = 8  # most adapters of a request
KEPT_BYTES = 1 << 30  # most bytes, by their files, of the adapters that a replica keeps besides those of a batch
LARGEST = 100.0  # largest weight, positive or negative


class OtherBaseError(ValueError):
    """An adapter was trained on another model."""


class Known(NamedTuple):
    """An adapter that was looked up, without its weights."""

    place: str  # returned by models.absolute; in the service, the adapter's name there
    fingerprint: str
    card: lora.AdapterCard


def look_up(place: str, model: str) -> Known:
    """Read the card and fingerprint of an adapter, and check that it was trained on this MODEL.

    place, model: returned by models.absolute. Raises ValueError: OtherBaseError if it was trained on another model.
    """
    file = lora.find(models.resolve_lora(place))
    card = lora.read_adapter_card(file)
    directory = models.resolve(model)
    try:
        lora.check_base(card, directory, models.plain(model), models.plain(place))
    except ValueError as error:
        raise OtherBaseError(str(error)) from None
    return Known(place, lora.fingerprint(file), card)


def chosen(texts: Sequence[str], find: Callable[[str], Known]) -> list[Lora]:
    """Look up the adapters of a request, as it stores them; those of weight 0 are left out. texts: PLACE[:weight].

    find: looks a place up, or raises ValueError. Raises SettingError for a text of another form, for an adapter that is
    unknown or named twice, and for more than MOST.
    """
    made: list[Lora] = []
    for text in texts:
        try:
            place, weight = lora.parse_option(text)
            known = find(place)
        except ValueError as error:
            raise SettingError("lora", str(error)) from None
        if any(known.fingerprint == other["fingerprint"] for other in made):
            raise SettingError("lora", f"{place} is named twice; give one weight")
        if abs(weight) > LARGEST:
            raise SettingError("lora", f"{place} has weight {weight:g}; give one within {LARGEST:g} of 0, such as 0.8")
        if weight:
            made.append(Lora(name=known.place, weight=weight, fingerprint=known.fingerprint))
    if len(made) > MOST:
        raise SettingError("lora", f"{len(made)} adapters are named, and at most {MOST} act at once; leave some out")
    return made


def text_of(request: Mapping[str, Any]) -> str | None:
    """The adapters of a request as text, NAME:weight, separated by commas; None if it has none."""
    return ", ".join(f"{one['name']}:{one['weight']}" for one in request.get("lora", [])) or None


def placed(texts: Sequence[str], tracking_uri: str | None, output: str) -> list[str]:
    """Make places of adapters absolute (models.absolute), because workers have other working directories.

    texts: PLACE[:weight], of flags. Raises ValueError.
    """
    pairs = [lora.parse_option(text) for text in texts]
    return [f"{models.absolute(place, tracking_uri, output)}:{weight}" for place, weight in pairs]


class CatalogAdapters:
    """Adapters that the rows of a catalog name; each is looked up once."""

    def __init__(self, config: AnimateConfig) -> None:
        self.config, self.known = config, dict[str, Known | ValueError]()
        catalog = storage.absolute(config.catalog)
        self.folder = catalog if os.path.isdir(catalog) else os.path.dirname(catalog)

    def find(self, place: str) -> Known:
        """Look up an adapter. place: relative to the catalog if it is there, else as in --lora. Raises ValueError."""
        if place not in self.known:
            beside = os.path.join(self.folder, place)
            try:
                uri, output = self.config.tracking_uri, self.config.output
                full = models.absolute(beside if os.path.exists(beside) else place, uri, output)
                self.known[place] = look_up(full, self.config.model)
            except ValueError as error:
                self.known[place] = error
        found = self.known[place]
        if isinstance(found, ValueError):
            raise ValueError(str(found))
        return found

    def places(self) -> dict[str, str]:
        """Map the adapters' names in requests, which are places without passwords, to the places to load them from."""
        return {redact(one.place): one.place for one in self.known.values() if isinstance(one, Known)}


class Switch:
    """Adapters of a replica's pipeline: loaded when a request first names them, switched for each batch."""

    def __init__(self, pipe: Any, places: Mapping[str, str] | None = None) -> None:
        """places: where to load adapters from, by their names in requests; any other name is itself a place."""
        self.pipe, self.places = pipe, places or {}
        self.bytes = dict[str, int]()  # size of the file of each adapter that was loaded, by name

    def use(self, asked: Sequence[Lora]) -> list[LoraFacts]:
        """Let these adapters act, and no others; returns their entries for sidecars. Raises ValueError.

        If the others have more than KEPT_BYTES, those that were loaded first are deleted, before more are loaded.
        """
        names = [one["fingerprint"][:32] for one in asked]
        others = {name: self.bytes[name] for name in self.pipe.loras if name not in names}
        while sum(others.values()) > KEPT_BYTES:
            oldest = next(iter(others))
            del others[oldest]
            self.pipe.delete_adapters(oldest)
        for one, name in zip(asked, names, strict=True):
            if name not in self.pipe.loras:
                self.load(one, name)
        self.pipe.set_adapters(names, [one["weight"] for one in asked])
        return [facts(one, self.pipe.loras[name].card.lineage) for one, name in zip(asked, names, strict=True)]

    def load(self, one: Lora, name: str) -> None:
        """Load an adapter. Raises ValueError if its file is not the one that was asked for."""
        self.pipe.load_lora_weights(models.resolve_lora(self.places.get(one["name"], one["name"])), name)
        self.bytes[name] = self.pipe.loras[name].path.stat().st_size
        if (found := self.pipe.loras[name].fingerprint) != one["fingerprint"]:
            self.pipe.delete_adapters(name)
            raise ValueError(
                f"lora {models.plain(one['name'])} has fingerprint {found[:12]} here, and {one['fingerprint'][:12]} "
                "when the job began; run the job again"
            )


def facts(one: Lora, lineage: Mapping[str, Any]) -> LoraFacts:
    """Entry of an adapter in a sidecar. lineage: of its card."""
    plain = models.plain(one["name"])
    return LoraFacts(path=plain, fingerprint=one["fingerprint"], weight=one["weight"], lineage=dict(lineage))
