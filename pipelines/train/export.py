"""Export a run's checkpoint as a model directory: the trained U-Net, the source's other parts and the lineage."""

import tempfile
from pathlib import Path

import torch

import cinemo
from cinemo import checkpoint
from cinemo.unet import CinemoUNet
from pipelines.core import models, storage
from pipelines.train import data
from pipelines.train.config import TrainConfig
from pipelines.train.state import read_fragments


def trained_unet(config: TrainConfig, saved: str | Path) -> CinemoUNet:
    """Load the U-Net of a checkpoint's folder: the moving average of its weights, or the last ones without average."""
    if config.init.startswith("lavie:"):
        unet = CinemoUNet()
    else:
        unet = CinemoUNet.from_config(CinemoUNet.load_config(data.directory(config) / "unet"))
    fragments, steps = read_fragments(saved)
    key = "ema" if config.ema_decay and steps else "fp32"
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            weight.copy_(torch.cat(fragments[name][key]).view_as(weight))
    return unet


def export(config: TrainConfig, saved: str | Path, motion: dict[str, str], run_id: str | None, output: str) -> str:
    """Write OUTPUT/model from a checkpoint's folder; returns the model's fingerprint."""
    source, unet = data.directory(config), trained_unet(config, saved)
    dataset = data.describe(config)
    card = checkpoint.ModelCard(
        motion=motion,
        sizes=[(dataset["height"], dataset["width"])],
        lengths=[dataset["num_frames"]],
        sampling=checkpoint.read_card(source).sampling if config.has_model else {},
        lineage={
            "dataset": config.dataset,
            "dataset_fingerprint": dataset["fingerprint"],
            "sources": dataset["input"],
            "init": config.init,
            **({"init_fingerprint": models.fingerprint(source)} if config.has_model else {}),
            "output": config.output,
            "steps": config.max_steps,
            "ema_decay": config.ema_decay,
            "run_id": run_id,
            "code_version": cinemo.__version__,
        },
    )
    if storage.is_local(output):
        model = checkpoint.export_model(source, unet, Path(output) / "model", card, data.prediction_type(config))
        return models.fingerprint(model)
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint.export_model(source, unet, Path(folder) / "model", card, data.prediction_type(config))
        storage.upload(model, storage.join(output, "model"))
        return models.fingerprint(model)
