"""LoRA adapters with random weights, which change every frame, in the form that training writes."""

from pathlib import Path
from typing import Any

import torch

from cinemo import checkpoint, lora


def write_adapter(folder: Path, model: str | Path, seed: int = 0, **card: Any) -> Path:
    """An adapter of a MODEL's temporal attention, in a folder; returns the folder."""
    directory = checkpoint.resolve(model)
    unet = checkpoint.load_unet(directory)
    lora.add_adapter(unet, 4, 4.0, "motion")
    state, random = lora.state_of(unet), torch.Generator().manual_seed(seed)
    drawn = {name: 0.3 * torch.randn(weight.shape, generator=random) for name, weight in state.items()}
    base = {"base": str(model), "unet_fingerprint": checkpoint.fingerprint(directory / "unet"), "rank": 4}
    lora.write(folder, drawn, lora.adapter_config(unet), lora.AdapterCard(**{**base, **card}))
    return folder
