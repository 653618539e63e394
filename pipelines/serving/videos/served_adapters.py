"""LoRA adapters of a replica of the service: loaded at its start, and switched for each batch."""

from collections.abc import Mapping
from typing import Any

from cinemo.sidecar import Lora, LoraFacts, Request
from pipelines.animate import requested_adapters
from pipelines.serving import served_models


class ServedAdapters:
    """Adapters of one model. All jobs of a batch have the same ones, because adapters are part of a request's shape."""

    def __init__(self, pipe: Any, places: Mapping[str, str], model: str) -> None:
        """Load those adapters that fit this MODEL, so that no request waits for them. Raises ValueError.

        places: name in the API -> place of the adapter.
        """
        self.switch = requested_adapters.Switch(pipe)
        known = {name: served_models.find_adapter(name, place, model) for name, place in places.items()}
        self.fingerprints = {name: found.fingerprint for name, found in known.items() if found is not None}
        self.places = {name: places[name] for name in self.fingerprints}
        for name in self.places:
            self.switch.use([self.entry(name, 1.0)])
        self.switch.use([])

    def entry(self, name: str, weight: float) -> Lora:
        """An adapter as requested_adapters.Switch takes it: named by its place."""
        return Lora(name=self.places[name], weight=weight, fingerprint=self.fingerprints[name])

    def missing(self, request: Request) -> str | None:
        """Name of an adapter of a request that this replica does not have; None if it has all."""
        return next((one["name"] for one in request.get("lora", []) if one["name"] not in self.places), None)

    def use(self, request: Request) -> list[LoraFacts]:
        """Let the adapters of a request act, and no others; returns their entries for sidecars. Raises ValueError."""
        asked = request.get("lora", [])
        acting = self.switch.use([self.entry(one["name"], one["weight"]) for one in asked])
        return [LoraFacts({**facts, "path": one["name"]}) for facts, one in zip(acting, asked, strict=True)]
