"""The served LoRA adapters in a replica: loaded at its start, and switched on for a batch by their names."""

from collections.abc import Mapping
from typing import Any

from cinemo.sidecar import Lora, LoraFacts, Request
from pipelines.animate import adapters
from pipelines.serving import served_models


class ServedAdapters:
    """The adapters of one model. All jobs of a batch have the same ones, since these are part of their shape."""

    def __init__(self, pipe: Any, places: Mapping[str, str], model: str) -> None:
        """Load those of `places` (name -> place) that are ones of this MODEL, so that no request waits for them.

        Raises ValueError for one that cannot be loaded.
        """
        self.switch = adapters.Switch(pipe)
        known = {name: served_models.find_adapter(name, place, model) for name, place in places.items()}
        self.fingerprints = {name: found.fingerprint for name, found in known.items() if found is not None}
        self.places = {name: places[name] for name in self.fingerprints}
        for name in self.places:
            self.switch.use([self.entry(name, 1.0)])
        self.switch.use([])

    def entry(self, name: str, weight: float) -> Lora:
        """An adapter as the switch takes it: by the place of its file."""
        return Lora(name=self.places[name], weight=weight, fingerprint=self.fingerprints[name])

    def missing(self, request: Request) -> str | None:
        """Name of an adapter of a request that is no longer served, if there is one."""
        return next((one["name"] for one in request.get("lora", []) if one["name"] not in self.places), None)

    def use(self, request: Request) -> list[LoraFacts]:
        """Let the adapters of a request act, and no others; returns what the sidecars say of them."""
        asked = request.get("lora", [])
        acting = self.switch.use([self.entry(one["name"], one["weight"]) for one in asked])
        return [LoraFacts({**facts, "path": one["name"]}) for facts, one in zip(acting, asked, strict=True)]
