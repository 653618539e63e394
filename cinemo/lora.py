"""LoRA adapters of the U-Net (Hu et al., arXiv 2106.09685): their files, their cards, and how a U-Net gets them.

An adapter is one file in diffusers' layout, pytorch_lora_weights.safetensors. Its header has peft's configuration,
where diffusers keeps it, and the card: base model, trigger words, lineage. Only the functions that touch a U-Net or the
weights import torch, diffusers and peft.
"""

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cinemo import checkpoint
from cinemo.errors import first_line, redact

if TYPE_CHECKING:  # takes seconds to import
    from torch import Tensor, nn

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
CARD_NAME = "cinemo_lora.json"  # a copy of the card beside the weights, for people
FORMAT_VERSION = 1
PREFIX = "unet."
# Keys of the file's metadata: diffusers' own for the configuration of peft, and ours for the card.
CONFIG_KEY, CARD_KEY = "lora_adapter_metadata", "cinemo"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# Suffixes of the names of the layers that get adapters, by the name of the choice.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ATTENTION,  # of all three kinds: within a frame, to the text, between frames
    "motion": tuple(f"attn_temp.{name}" for name in ATTENTION),  # between frames alone
    "all": (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
            "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv"),
}  # fmt: skip
# Fields of peft's configuration that are read; the others start a training, or describe other kinds of adapters.
CONFIG_NAMES = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")


@dataclass(frozen=True)
class AdapterCard:
    """What an adapter's file says of itself. A file of another tool has no card, and gets these defaults."""

    base: str = ""  # name of the model that it was trained on
    base_fingerprint: str | None = None  # of that model's directory, for its lineage
    unet_fingerprint: str | None = None  # of that model's unet/, which the adapter needs
    rank: int = 0
    alpha: float = 0.0
    targets: str = ""
    trigger_words: str = ""  # text that training put before every caption that lacked it
    sizes: list[tuple[int, int]] | None = None  # (height, width) of the clips that it was trained on
    lengths: list[int] | None = None  # frames of these clips
    lineage: dict[str, Any] = field(default_factory=dict)  # as in a model's card
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Adapter:
    """An adapter, as read from its file."""

    path: Path
    state: dict[str, "Tensor"]  # "unet.<layer>.lora_A.weight" (rank, in, ...), ".lora_B.weight" (out, rank, ...)
    config: dict[str, Any]  # fields of peft's LoraConfig, {} if the file has none
    card: AdapterCard
    fingerprint: str  # of the file


def parse_option(value: str) -> tuple[str, float]:
    """Split PATH[:weight], as --lora takes it; the weight is 1 by default. Raises ValueError."""
    place, weight = value, 1.0
    before, colon, after = value.rpartition(":")  # of models:/NAME#http://host:5000, a port
    if colon and not (after.isdecimal() and re.search(r"https?://([^/@]*@)?[^/:@]+$", before)):
        with contextlib.suppress(ValueError):  # no number, but models:/NAME@ALIAS
            place, weight = before, float(after)
    if not place or not math.isfinite(weight):
        raise ValueError(f"lora {value[:100]!r} should be PATH or PATH:weight, such as lora/:0.8, with a finite weight")
    return place, weight


def find(place: str | os.PathLike[str]) -> Path:
    """Find an adapter's file. place: the file, a folder that holds it, or a hub id. Raises ValueError."""
    path = Path(place)
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # unlike Path's, False for names that are too long
    if is_file and path.suffix == ".safetensors":
        return path
    if is_file:
        raise ValueError(f"lora {place} is not a .safetensors file; pass one, or the folder that holds {WEIGHTS_NAME}")
    if not is_folder:
        return _download(os.fspath(place))
    if os.path.isfile(path / WEIGHTS_NAME):
        return path / WEIGHTS_NAME
    raise ValueError(f"lora {place} holds no {WEIGHTS_NAME}; pass the folder lora/ of a training, or the file itself")


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    missing = f"lora {name} is neither a file, nor a folder, nor a repository that can be reached on the hub"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"{missing}; check the path")
    try:
        return Path(hf_hub_download(name, WEIGHTS_NAME))
    except (HFValidationError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{missing} ({type(error).__name__}); check the name, the network or HF_HOME") from error


def fingerprint(file: str | os.PathLike[str]) -> str:
    """SHA-256 of an adapter's file, hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_metadata(file: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata in a file's header. Raises ValueError if it is not a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"lora {file} cannot be read: {first_line(error)}; download or export it again") from error


def read_adapter_card(file: str | os.PathLike[str]) -> AdapterCard:
    """Read the card in a file's header; the empty card for files of other tools. Raises ValueError."""
    text = read_metadata(file).get(CARD_KEY)
    if text is None:
        return AdapterCard()
    remedy = "export it again"
    try:
        raw = json.loads(text)
        if raw.get("format_version") != FORMAT_VERSION:
            remedy = "upgrade cinemo"
            raise ValueError(f"format_version {raw.get('format_version')} is not {FORMAT_VERSION}")
        raw["sizes"] = [(int(height), int(width)) for height, width in raw["sizes"]] if raw.get("sizes") else None
        return AdapterCard(**raw)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"lora {file} has a card that cannot be used: {error}; {remedy}") from error


def read(place: str | os.PathLike[str]) -> Adapter:
    """Read an adapter. place: as in `find`. Raises ValueError if there is none, or its file cannot be read."""
    from safetensors.torch import load_file

    file = find(place)
    config: dict[str, Any] = {}
    if text := read_metadata(file).get(CONFIG_KEY):
        try:
            config = {name.removeprefix(PREFIX): value for name, value in json.loads(text).items()}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"lora {file} has {CONFIG_KEY} that is not a JSON object; export it again") from error
    return Adapter(file, load_file(file), config, read_adapter_card(file), fingerprint(file))


def write(
    folder: str | os.PathLike[str], state: Mapping[str, "Tensor"], config: Mapping[str, Any], card: AdapterCard
) -> Path:
    """Write an adapter's file, and its card beside it, into a folder; returns the file's path.

    state, config: as in Adapter. The file appears complete or not at all, and after its card.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = redact(json.dumps(asdict(card), indent=2, sort_keys=True))
    described = {PREFIX + name: value for name, value in config.items()}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(described, sort_keys=True), CARD_KEY: text}
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        save_file(dict(state), Path(aside) / WEIGHTS_NAME, metadata=metadata)
        (Path(aside) / WEIGHTS_NAME).chmod(0o644)  # save_file makes it readable for its owner alone
        (Path(aside) / CARD_NAME).write_text(text + "\n")
        for name in (CARD_NAME, WEIGHTS_NAME):
            os.replace(Path(aside) / name, folder / name)
    return folder / WEIGHTS_NAME


def check_base(card: AdapterCard, model: Path, name: str, lora: str) -> None:
    """Check that an adapter was trained on the U-Net of a model. Raises ValueError.

    model: its directory. name, lora: model and adapter as the user wrote them. A file of another tool does not say what
    it was trained on, and passes.
    """
    if card.unet_fingerprint is None:
        return
    found = _fingerprint_of(model / "unet", max(path.stat().st_mtime_ns for path in (model / "unet").iterdir()))
    if found != card.unet_fingerprint:
        raise ValueError(
            f"lora {lora} was trained on {card.base} with the U-Net {card.unet_fingerprint[:12]}, but {name} has the "
            f"U-Net {found[:12]}; use it with the model that it was trained on, or train one on {name}"
        )


@functools.lru_cache(maxsize=8)
def _fingerprint_of(part: Path, changed: int) -> str:
    """checkpoint.fingerprint, cached. changed: time of the last change, in nanoseconds; part of the cache's key."""
    return checkpoint.fingerprint(part)


def add_adapter(unet: Any, rank: int, alpha: float, targets: str, name: str = "default", seed: int = 0) -> None:
    """Add a new adapter to train, whose output is still 0, and freeze all other weights. Raises ValueError.

    alpha: the adapter's output is multiplied by alpha / rank. targets: a name in TARGETS. seed: of its first weights.
    """
    import torch
    from peft import LoraConfig

    if rank < 1:
        raise ValueError(f"rank {rank} of a LoRA adapter should be at least 1, such as 16")
    if targets not in TARGETS:
        raise ValueError(f"targets {targets!r} of a LoRA adapter are unknown; use one of {', '.join(TARGETS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS[targets])), name)


def adapter_config(unet: Any, name: str = "default") -> dict[str, Any]:
    """The part of an adapter's configuration that its file stores."""
    config = unet.peft_config[name]
    modules = config.target_modules
    return {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": modules if isinstance(modules, str) else sorted(modules),
    }


def state_of(unet: Any, name: str = "default") -> dict[str, "Tensor"]:
    """Weights of an adapter, float32 on the CPU, by their names in a file."""
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(unet, adapter_name=name)
    return {PREFIX + key: weight.detach().float().cpu().contiguous() for key, weight in state.items()}


def attach(unet: Any, adapter: Adapter, name: str) -> None:
    """Add an adapter to a U-Net, in its dtype and on its device; it is then the only active one. Raises ValueError."""
    check_fits(unet, adapter)
    known = {key: value for key, value in adapter.config.items() if key in CONFIG_NAMES}
    metadata = {PREFIX + key: value for key, value in known.items()} or None
    if name in names(unet):
        raise ValueError(f"adapter name {name!r} is taken; detach that adapter first, or choose another name")
    log = logging.getLogger("diffusers.utils.peft_utils")
    before = log.level
    try:
        log.setLevel(logging.ERROR)  # it warns that the other adapters' weights are missing; check_fits checked these
        unet.load_lora_adapter(adapter.state, prefix="unet", adapter_name=name, metadata=metadata)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"lora {adapter.path} cannot be loaded: {first_line(error)}; export it again") from error
    finally:
        log.setLevel(before)
    set_weights(unet, {name: 1.0})


def check_fits(unet: Any, adapter: Adapter) -> None:
    """Check names and shapes of an adapter's weights against a U-Net's layers. Raises ValueError."""
    layers = {key.replace(".base_layer", ""): layer for key, layer in unet.named_modules() if "lora_" not in key}
    if not adapter.state:
        raise ValueError(f"lora {adapter.path} holds no weights; export it again")
    for key, weight in adapter.state.items():
        module, _, kind = key.removeprefix(PREFIX).rpartition(".lora_")
        if not key.startswith(PREFIX) or kind not in ("A.weight", "B.weight"):
            raise ValueError(
                f"lora {adapter.path} holds {key}, which is no LoRA weight of a U-Net; needed is diffusers' layout, "
                f"{PREFIX}<layer>.lora_A.weight and .lora_B.weight"
            )
        expected = weight_shape(layers.get(module), kind, adapter.state.get(f"{PREFIX}{module}.lora_A.weight"))
        if expected != tuple(weight.shape):
            raise ValueError(
                f"lora {adapter.path} does not fit the model: {key} is {tuple(weight.shape)}, and "
                f"{f'should be {expected}' if expected else 'there is no such layer'}; use it with the model that it "
                "was trained on"
            )
        if kind == "A.weight" and f"{PREFIX}{module}.lora_B.weight" not in adapter.state:  # peft would leave zeros
            raise ValueError(f"lora {adapter.path} has {key} without its lora_B.weight; export it again")


def weight_shape(layer: Any, kind: str, first: "Tensor | None") -> tuple[int, ...] | None:
    """Shape that an adapter's weight should have; None for a layer that takes no adapter, and if `first` is None.

    layer: of the U-Net, None if it has none of this name. kind: "A.weight" or "B.weight". first: A of the same layer.
    """
    weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
    if weight is None or weight.dim() not in (2, 4) or first is None or first.dim() != weight.dim():
        return None
    if kind == "A.weight":
        return (first.shape[0], *weight.shape[1:])
    return (weight.shape[0], first.shape[0], *(1 for _ in weight.shape[2:]))


def layers_of(unet: Any) -> list["nn.Module"]:
    """Layers of a U-Net that have adapters, as peft's wrappers."""
    return [layer for layer in unet.modules() if hasattr(layer, "base_layer")]


def names(unet: Any) -> list[str]:
    """Names of the adapters in a U-Net, in the order in which they were added."""
    return list(getattr(unet, "peft_config", {}))


def check_loaded(unet: Any, wanted: Iterable[str]) -> None:
    """Raise ValueError for the name of an adapter that a U-Net does not have."""
    for name in set(wanted) - set(names(unet)):
        raise ValueError(f"adapter {name!r} is not loaded; attach it (loaded: {', '.join(names(unet)) or 'none'})")


def set_weights(unet: Any, weights: Mapping[str, float]) -> None:
    """Make these adapters, with these weights, the only active ones; {} turns all off. Raises ValueError."""
    check_loaded(unet, weights)
    for layer in layers_of(unet):
        layer.enable_adapters(bool(weights))
        layer.set_adapter(list(weights), inference_mode=True)
        for name, weight in weights.items():
            layer.set_scale(name, weight)


def detach(unet: Any, name: str | None = None) -> None:
    """Remove an adapter (None: all). With the last one gone, the U-Net has its own layers again. Raises ValueError."""
    check_loaded(unet, [] if name is None else [name])
    if name is not None and len(names(unet)) > 1:
        unet.delete_adapters(name)
    elif names(unet):
        unet.unload_lora()
