"""LoRA methods of CinemoPipeline, named as in diffusers: load, combine, switch off, fuse and unload adapters.

cinemo.lora reads the files and changes the U-Net; it imports peft when the first adapter is loaded, not before.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cinemo import lora

if TYPE_CHECKING:
    from torch import Tensor


class LoraLoaderMixin:
    """LoRA methods of CinemoPipeline. They change the pipeline's own U-Net, so call none while a thread samples.

    diffusers' LoraBaseMixin has the same names; it is not a base class, because it also handles text encoders.
    """

    unet: Any
    directory: Path | None = None  # of the model, to check that adapters were trained on it; None: not known
    model_name = "this model"
    loras: Mapping[str, lora.Adapter] = {}  # loaded, by name; without their weights
    lora_weights: Mapping[str, float] = {}  # of the adapters that set_adapters chose
    fused_from: Mapping[str, float] = {}  # lora_weights before adapters were fused
    unfused: Sequence["Tensor"] | None = None  # weights of the layers before adapters were fused; None: none is fused

    def load_lora_weights(self, place: Any, adapter_name: str | None = None) -> None:
        """Load an adapter, which then acts alone, with weight 1; `set_adapters` combines several.

        place: a folder or file that training wrote, or a hub id. adapter_name: by default default_0, default_1, ...
        Raises ValueError if it is no adapter, or was trained on another model, or the name is taken.
        """
        self.check_not_fused()
        free = (f"default_{number}" for number in itertools.count() if f"default_{number}" not in self.loras)
        name = next(free) if adapter_name is None else adapter_name
        if "." in name or not name:
            raise ValueError(f"adapter_name {name!r} cannot name a part of a model; leave out the dots")
        if name in self.loras:
            raise ValueError(f"adapter_name {name} is in use; give another, or call delete_adapters({name!r}) first")
        adapter = lora.read(place)
        if self.directory is not None:
            lora.check_base(adapter.card, self.directory, self.model_name, str(place))
        lora.attach(self.unet, adapter, name)
        self.loras = {**self.loras, name: replace(adapter, state={})}
        self.set_adapters(name)

    def load_adapters(self, adapters: Sequence[tuple[str, float]]) -> None:
        """Load adapters, given as (place, weight), in place of all others; they act together. Raises ValueError."""
        self.unload_lora_weights()
        for place, _ in adapters:
            self.load_lora_weights(place)
        self.set_adapters(list(self.loras), [weight for _, weight in adapters])

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Let these adapters act, and no others; [] turns all off. Raises ValueError.

        adapter_weights: one for all, or one for each; default: 1.
        """
        self.check_not_fused()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = 1.0 if adapter_weights is None else adapter_weights
        weights = [given] * len(names) if isinstance(given, (int, float)) else list(given)
        if len(weights) != len(names):
            raise ValueError(f"adapter_weights has {len(weights)} values for {len(names)} adapters; give one for each")
        self.check_names(names)
        for name, weight in zip(names, weights, strict=True):
            if not math.isfinite(weight):
                raise ValueError(f"adapter_weights has {weight} for {name}; give a number such as 0.8")
        self.lora_weights = dict(zip(names, map(float, weights), strict=True))
        if self.loras:
            lora.set_weights(self.unet, dict(self.lora_weights))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that `set_adapters` chose; `disable_lora` does not change them."""
        return list(self.lora_weights)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of the loaded adapters, by component; only the U-Net has adapters."""
        return {"unet": list(self.loras)} if self.loras else {}

    def disable_lora(self) -> None:
        """Let no adapter act: results are those of the model alone, to the last bit."""
        if self.loras:
            self.check_not_fused()
            lora.set_weights(self.unet, {})

    def enable_lora(self) -> None:
        """Let the adapters act again that acted before `disable_lora`."""
        if self.loras:
            self.check_not_fused()
            lora.set_weights(self.unet, dict(self.lora_weights))

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters from the U-Net; the others that `set_adapters` chose act. Raises ValueError."""
        self.check_not_fused()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self.check_names(names)
        for name in names:
            lora.detach(self.unet, name)
            self.loras = {other: adapter for other, adapter in self.loras.items() if other != name}
        left = {name: weight for name, weight in self.lora_weights.items() if name in self.loras}
        self.set_adapters(list(left), list(left.values()))

    def fuse_lora(
        self,
        components: Sequence[str] = ("unet",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Add adapters to the U-Net's weights, which makes steps as fast as without them.

        components: only ("unet",). lora_scale: multiplies the adapters' weights. safe_fusing: refuse NaN.
        adapter_names: by default those that act. Keeps a copy of the weights that change. Raises ValueError.
        """
        self.check_not_fused()
        if list(components) != ["unet"]:
            raise ValueError(f"components {list(components)} cannot be fused; only the U-Net has adapters: ['unet']")
        names = self.get_active_adapters() if adapter_names is None else list(adapter_names)
        if not names:
            raise ValueError("no adapter acts that could be fused; call load_lora_weights or set_adapters first")
        before = self.lora_weights
        self.set_adapters(names, [before.get(name, 1.0) * lora_scale for name in names])
        self.fused_from = before
        self.unfused = [layer.base_layer.weight.detach().clone() for layer in lora.layers_of(self.unet)]
        self.unet.fuse_lora(safe_fusing=safe_fusing, adapter_names=names)

    def unfuse_lora(self, components: Sequence[str] = ("unet",)) -> None:
        """Undo `fuse_lora`: the weights are what they were, to the last bit, and the adapters act as layers again."""
        if self.unfused is None:
            raise ValueError(f"no adapter is fused into {', '.join(components)}; call fuse_lora first")
        unfused, self.unfused = self.unfused, None
        self.unet.unfuse_lora()  # subtracts, which leaves an error of rounding
        for layer, weight in zip(lora.layers_of(self.unet), unfused, strict=True):
            layer.base_layer.weight.detach().copy_(weight)
        self.set_adapters(list(self.fused_from), list(self.fused_from.values()))

    def unload_lora_weights(self) -> None:
        """Remove all adapters from the U-Net. As in diffusers, those that are fused stay fused, for good."""
        if self.loras:
            lora.detach(self.unet)
        self.loras, self.lora_weights, self.unfused = {}, {}, None

    def check_not_fused(self) -> None:
        """Raise ValueError while adapters are fused into the weights."""
        if self.unfused is not None:
            raise ValueError(f"adapters {', '.join(self.lora_weights)} are fused; call unfuse_lora() first")

    def check_names(self, names: Sequence[str]) -> None:
        """Raise ValueError for the name of an adapter that is not loaded."""
        for name in names:
            if name not in self.loras:
                known = ", ".join(self.loras) or "load_lora_weights first: there is none"
                raise ValueError(f"adapter_names has {name}, which is not loaded; use {known}")
