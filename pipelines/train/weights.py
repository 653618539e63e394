"""The start of a run: its model directory, the prediction type of its U-Net, and the U-Net itself.

Importing this module loads neither torch nor DeepSpeed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cinemo import checkpoint
from pipelines.core import models
from pipelines.train.config import TrainConfig

if TYPE_CHECKING:  # seconds to import, and `--help` does not need it
    from cinemo.unet import CinemoUNet


def directory(config: TrainConfig) -> Path:
    """Directory, on this node, of the model that the run starts from (source_model). Raises ValueError."""
    return models.resolve(config.source_model)


def prediction_type(config: TrainConfig) -> str:
    """Prediction type of the U-Net: "epsilon", "v_prediction" or "sample"."""
    if config.prediction_type != "auto":
        return config.prediction_type
    return checkpoint.load_scheduler(directory(config)).config.prediction_type if config.has_model else "epsilon"


def load_unet(config: TrainConfig) -> "CinemoUNet":
    """Load the U-Net that --init names, in training mode: a model's, LaVie's, or random weights from the seed."""
    import torch

    from cinemo.unet import CinemoUNet

    torch.manual_seed(config.seed)  # the same random weights in every worker
    if config.init.startswith("lavie:"):
        unet = checkpoint.load_lavie(config.init.removeprefix("lavie:"))
    elif config.init == "none":
        unet = CinemoUNet.from_config(CinemoUNet.load_config(directory(config) / "unet"))
    else:
        unet = checkpoint.load_unet(directory(config))
    return unet.train()
