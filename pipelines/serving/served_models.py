"""The models that are served, and the adapters of each: sizes, lengths and defaults. Loads no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.animate import requested_adapters
from pipelines.core import models


@dataclass(frozen=True)
class Served(models.Facts):
    """Properties of a model that are known without loading it, its name in the API, and its adapters."""

    name: str
    # By name; None: it fits another model.
    loras: Mapping[str, requested_adapters.Known | None] = field(default_factory=dict)

    def adapter(self, name: str) -> requested_adapters.Known:
        """Find an adapter that is served for this model. Raises ValueError."""
        known = self.loras.get(name)
        if known is None:
            why = f"is an adapter of another model than {self.name}" if name in self.loras else "is not served"
            names = ", ".join(own for own, found in self.loras.items() if found is not None)
            raise ValueError(f"{name[:100]} {why}; {f'use {names}' if names else 'there are none'}")
        return known


def look_up(name: str, model: str, loras: Mapping[str, str] | None = None) -> Served:
    """Read the properties of a MODEL and its adapters. Raises ValueError if one of them is missing.

    name: of the model in the API. loras: name -> place of all adapters that are served, also of other models.
    """
    found = {lora: find_adapter(lora, place, model) for lora, place in (loras or {}).items()}
    return Served(**vars(models.look_up(model)), name=name, loras=found)


def find_adapter(name: str, place: str, model: str) -> requested_adapters.Known | None:
    """Look up an adapter; None if it was trained on another MODEL. Raises ValueError.

    name: in the API, which the result has as its place.
    """
    try:
        return requested_adapters.look_up(place, model)._replace(place=name)
    except requested_adapters.OtherBaseError:
        return None
