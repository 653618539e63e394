"""A checkpoint of a run -> a model directory: the trained U-Net with the parts of its source, and where it came from.

Knows checkpoints and model directories. Knows nothing of engines or steps.
"""

import tempfile
from pathlib import Path

import torch

import cinemo
from cinemo import checkpoint
from cinemo.unet import CinemoUNet
from pipelines.core import models, storage
from pipelines.train import data, weights
from pipelines.train.config import TrainConfig
from pipelines.train.state import read_pieces


def trained_unet(config: TrainConfig, saved: str | Path) -> CinemoUNet:
    """The U-Net of a checkpoint's folder: the average of its weights, or the last ones when the run keeps none."""
    config_of = weights.directory(config) / "unet" if not config.init.startswith("lavie:") else None
    unet = CinemoUNet.from_config(CinemoUNet.load_config(config_of)) if config_of else CinemoUNet()
    pieces, steps = read_pieces(saved)
    kind = "ema" if config.ema_decay and steps else "fp32"
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            weight.copy_(torch.cat(pieces[name][kind]).view_as(weight))
    return unet


def export(config: TrainConfig, saved: str | Path, motion: dict[str, str], run_id: str | None, output: str) -> str:
    """Write OUTPUT/model from a checkpoint's folder; returns the model's fingerprint."""
    source, unet = weights.directory(config), trained_unet(config, saved)
    made_from = data.describe(config)
    card = checkpoint.ModelCard(
        motion=motion,
        sizes=[(made_from["height"], made_from["width"])],
        lengths=[made_from["num_frames"]],
        sampling=checkpoint.read_card(source).sampling if config.has_model else {},
        lineage={
            "dataset": config.dataset,
            "dataset_fingerprint": made_from["fingerprint"],
            "sources": made_from["input"],
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
        model = checkpoint.export_model(source, unet, Path(output) / "model", card, weights.prediction_type(config))
        return models.fingerprint(model)
    with tempfile.TemporaryDirectory() as folder:
        model = checkpoint.export_model(source, unet, Path(folder) / "model", card, weights.prediction_type(config))
        storage.upload(model, storage.join(output, "model"))
        return models.fingerprint(model)
