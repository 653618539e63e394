"""The model directory: find it, load its parts, write a new one, identify it. card.py reads and writes its card.

Reads the official repository's layout (unet/ vae/ vae_temporal_decoder/ text_encoder/ tokenizer/ scheduler/) and ours,
which adds cinemo.json.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cinemo import builtin
from cinemo.card import CARD_NAME, ModelCard, read_card, write_card
from cinemo.errors import first_line

if TYPE_CHECKING:  # torch and diffusers take seconds to import, and `cinemo info` needs neither
    import torch

INCOMPLETE = ".incomplete"  # file that marks a model whose upload has not finished; contains its fingerprint
VAES = {"temporal": "vae_temporal_decoder", "frame": "vae"}
WEIGHTS = ("*.safetensors", "*.bin")
# Names that diffusers and transformers give weights, optionally with a variant such as fp16, and in shards.
NAME = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
# Every official model was trained with this schedule, whatever its scheduler_config.json says.
OFFICIAL_SCHEDULE = {
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "timestep_spacing": "leading",
    "set_alpha_to_one": False,
}


def resolve(model: str | os.PathLike[str]) -> Path:
    """Find the directory of a model. model: "builtin:tiny", a directory, or a hub id (owner/name).

    Raises ValueError when there is no such model or it has no U-Net.
    """
    name = os.fspath(model)
    if name.startswith("builtin:"):
        directory = builtin.find(name)
    elif Path(name).is_dir():
        directory = Path(name)
    elif Path(name).exists():
        raise ValueError(f"model {name} is a file; pass the directory that holds unet/, vae/ and text_encoder/")
    else:
        directory = download(name)
    if (directory / INCOMPLETE).exists():
        raise ValueError(
            f"model {name} is half an export: its upload did not finish ({INCOMPLETE} is there); "
            "run the training command again, then copy the model again"
        )
    if not list_weights(directory / "unet"):
        raise ValueError(
            f"model {name} has no U-Net (looked for unet/*.safetensors and unet/*.bin); is it a model directory?"
        )
    return directory


def download(name: str) -> Path:
    """Fetch a hub repository, or find it in the local cache. Raises ValueError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    missing = f"model {name} is neither builtin:tiny, nor a directory, nor a repository that can be reached on the hub"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ValueError(f"{missing}; check the path")
    try:
        parts = ("unet", *VAES.values(), "text_encoder", "tokenizer", "scheduler")
        return Path(snapshot_download(name, allow_patterns=[*(f"{part}/*" for part in parts), "*.json"]))
    except (HFValidationError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{missing} ({type(error).__name__}); check the name, the network or HF_HOME") from error


def list_weights(directory: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHTS for path in directory.glob(pattern))


def fingerprint(directory: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 of the sorted file digests of a model directory, or of a part such as vae/. Hexadecimal.

    Raises ValueError when there is nothing to identify.
    """
    root = Path(directory)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise ValueError(f"{root} holds no files; there is no model to identify")
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {digest}\n".encode())
    return total.hexdigest()


def load_unet(directory: str | os.PathLike[str], dtype: "torch.dtype | None" = None, device: str = "cpu") -> Any:
    """Load the U-Net of a model directory, in evaluation mode; dtype None means float32. Raises ValueError."""
    from cinemo.unet import CinemoUNet

    return load_part(CinemoUNet, Path(directory) / "unet", dtype).to(device).eval()


def vae_name(directory: str | os.PathLike[str], kind: str = "auto") -> str:
    """Subdirectory of the VAE of a kind: "temporal", "frame", or "auto" (temporal if there is one).

    Raises ValueError when the directory has no such VAE.
    """
    if kind not in (*VAES, "auto"):
        raise ValueError(f"vae {kind!r} is unknown; use 'temporal', 'frame' or 'auto'")
    wanted = list(VAES) if kind == "auto" else [kind]
    for name in wanted:
        if list_weights(Path(directory) / VAES[name]):
            return VAES[name]
    raise ValueError(
        f"model {directory} has no VAE in {' or '.join(VAES[name] + '/' for name in wanted)}; try vae='auto'"
    )


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels per latent cell, along each side, of an autoencoder. config: its config.json."""
    if "cell" in config:
        return int(config["cell"])
    blocks = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return int(2 ** (len(blocks) - 1))


def load_vae(
    directory: str | os.PathLike[str], kind: str = "auto", dtype: "torch.dtype | None" = None, device: str = "cpu"
) -> Any:
    """Load the autoencoder of a model directory, in evaluation mode. kind: see vae_name. Raises ValueError.

    Its class is AutoencoderKLTemporalDecoder for the temporal kind and AutoencoderKL for the other, unless the
    configuration names AutoencoderDC or our AutoencoderMotion.
    """
    name = vae_name(directory, kind)
    cls = "AutoencoderKLTemporalDecoder" if name == VAES["temporal"] else "AutoencoderKL"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # load_part reports broken files
        named = json.loads((Path(directory) / name / "config.json").read_text())["_class_name"]
        cls = named if named in ("AutoencoderDC", "AutoencoderMotion") else cls
    module = "cinemo.autoencoder" if cls == "AutoencoderMotion" else "diffusers"  # the latter takes a second to load
    return load_part(getattr(import_module(module), cls), Path(directory) / name, dtype).to(device).eval()


def load_text(
    directory: str | os.PathLike[str], dtype: "torch.dtype | None" = None, device: str = "cpu"
) -> tuple[Any, Any]:
    """Load (CLIPTokenizer, CLIPTextModel) of a model directory. Raises ValueError."""
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for the 36 tensors of a text encoder says nothing
    root = Path(directory)
    if not (root / "tokenizer").is_dir() or not list_weights(root / "text_encoder"):
        raise ValueError(f"model {root} has no tokenizer/ or no text_encoder/; copy them from the model it came from")
    tokenizer = CLIPTokenizer.from_pretrained(root / "tokenizer")
    return tokenizer, load_part(CLIPTextModel, root / "text_encoder", dtype).to(device).eval()


def load_scheduler(directory: str | os.PathLike[str], predicts: str | None = None) -> Any:
    """Load the DDIMScheduler of a model directory; official models get the schedule they were trained with.

    predicts: prediction type of another U-Net that is to use this schedule. If that is "epsilon", some signal is left
    at the last noise level: residuals cannot be recovered from noise alone.
    Raises ValueError when scheduler/ is missing.
    """
    from diffusers import DDIMScheduler

    root = Path(directory)
    if not (root / "scheduler" / "scheduler_config.json").exists():
        raise ValueError(f"model {root} has no scheduler/scheduler_config.json; copy it from the model it came from")
    config = DDIMScheduler.load_config(root / "scheduler")
    if not (root / CARD_NAME).exists():
        config |= OFFICIAL_SCHEDULE
    if predicts is not None:
        config |= {"prediction_type": predicts} | ({"rescale_betas_zero_snr": False} if predicts == "epsilon" else {})
    return DDIMScheduler.from_config(config)


def inversion_note(model: str, scheduler: Any) -> str | None:
    """Note about inverting videos with a model that predicts residuals; None for other models.

    Such a network is inexact where there is hardly any noise, and its error is divided by the noise.
    """
    if scheduler.config.prediction_type != "sample":
        return None
    return f"{model} predicts residuals, so little of a video's motion comes back; builtin:tiny brings back more"


def choose_weights(directory: Path) -> tuple[list[Path], dict[str, Any]]:
    """Choose the weight files of a part; returns them and the arguments of from_pretrained that load them.

    Safetensors come before .bin, and files without a variant before those with one (fp16). Raises ValueError for other
    names.
    """
    named = [(path, match) for path in list_weights(directory) if (match := NAME.fullmatch(path.name))]
    if not named:
        names = ", ".join(path.name for path in list_weights(directory)[:3]) or "no weights"
        raise ValueError(f"{directory} holds {names}; needed is diffusion_pytorch_model.safetensors, model.safetensors "
                         "or the same as .bin")  # fmt: skip
    best = min(named, key=lambda pair: (pair[1]["kind"] == "bin", pair[1]["variant"] or ""))[1]
    kind, variant = best["kind"], best["variant"]
    files = [path for path, match in named if (match["kind"], match["variant"]) == (kind, variant)]
    return files, {"use_safetensors": kind == "safetensors", "variant": variant}


def load_part(cls: Any, directory: Path, dtype: "torch.dtype | None") -> Any:
    """Load one part with from_pretrained, from safetensors or .bin. Raises ValueError, in one sentence, if it fails."""
    import torch

    name = "dtype" if cls.__module__.startswith("transformers") else "torch_dtype"
    _, arguments = choose_weights(directory)
    try:
        return cls.from_pretrained(directory, **{name: dtype or torch.float32}, **arguments)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory} cannot be loaded as {cls.__name__}: {first_line(error)}") from error


def load_lavie(path: str | os.PathLike[str], **config: Any) -> Any:
    """Create a full-size CinemoUNet with LaVie's base weights (paper, section 3.1).

    path: lavie_base.pt, a state dict, plain or under "ema". The motion embedding, which LaVie lacks, starts without
    effect. config: CinemoUNet arguments, for weights of another size. Raises ValueError when names or shapes differ.
    """
    import torch

    from cinemo.unet import CinemoUNet

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"LaVie weights {path} cannot be read: {first_line(error)}") from error
    state = state.get("ema", state)
    unet = CinemoUNet(**config)
    own = unet.state_dict()
    wrong = [name for name in state if name not in own or own[name].shape != state[name].shape]
    missing = [name for name in own if name not in state and not name.startswith("add_embedding.")]
    if wrong or missing:
        raise ValueError(
            f"{path} is not LaVie's U-Net: {len(wrong)} names or shapes differ and {len(missing)} are missing, "
            f"{(wrong + missing)[0]} first"
        )
    unet.load_state_dict({k: v for k, v in state.items() if not k.endswith("rotary_emb.freqs")}, strict=False)
    return unet


def export_model(
    source: str | os.PathLike[str],
    unet: Any,
    output: str | os.PathLike[str],
    card: ModelCard,
    prediction_type: str | None = None,
) -> Path:
    """Write a complete model directory: `unet`, the other parts of `source`, and `card`.

    prediction_type: what this U-Net predicts, if it differs from the source's scheduler.
    The directory appears complete or not at all; an existing output is replaced by a rename. Returns the output path.
    """
    source, output = Path(source), Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        for name in (*VAES.values(), "text_encoder", "tokenizer", "scheduler"):
            if (source / name).is_dir():
                shutil.copytree(source / name, aside / name)
        scheduler = load_scheduler(source, prediction_type)  # corrected here, because with a card the file is trusted
        scheduler.save_pretrained(aside / "scheduler")
        unet.save_pretrained(aside / "unet")
        write_card(aside, card)
        aside.chmod(0o755)
        if output.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
            os.rename(output, retired / output.name)
            os.rename(aside, output)
            shutil.rmtree(retired)
        else:
            os.rename(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return output


def describe(directory: Path) -> dict[str, Any]:
    """Facts for `cinemo info`: parts with their parameters, card, fingerprint. Counts by headers, without loading."""
    from safetensors import safe_open

    parts: dict[str, int | str] = {}
    for part in ("unet", *VAES.values(), "text_encoder"):
        if not list_weights(directory / part):
            continue
        files, _ = choose_weights(directory / part)
        if any(path.suffix == ".bin" for path in files):
            parts[part] = "in .bin, not counted"
            continue
        count = 0
        for path in files:
            with safe_open(path, framework="numpy") as file:
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        parts[part] = count
    card = read_card(directory)
    return {
        "directory": str(directory),
        "fingerprint": fingerprint(directory),
        "sizes": ", ".join(f"{h} x {w}" for h, w in card.sizes) if card.sizes else "any",
        "lengths": ", ".join(map(str, card.lengths)) if card.lengths else "any",
        "parameters": parts,
        "motion": card.motion,
        "lineage": card.lineage,
    }
