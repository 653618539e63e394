"""What a run starts from: a model directory, what its U-Net predicts, and the U-Net itself.

Loads neither torch nor DeepSpeed until weights are asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cinemo import checkpoint
from pipelines.core import models
from pipelines.train.config import TrainConfig

if TYPE_CHECKING:
    from cinemo.unet import CinemoUNet


def directory(config: TrainConfig) -> Path:
    """This node's directory of the MODEL that gives all but, perhaps, the U-Net's weights. Raises ValueError."""
    return models.resolve(config.source_model)


def prediction_type(config: TrainConfig) -> str:
    """What the U-Net predicts: "epsilon", "v_prediction" or "sample"."""
    if config.prediction_type != "auto":
        return config.prediction_type
    return checkpoint.load_scheduler(directory(config)).config.prediction_type if config.has_model else "epsilon"


def load_unet(config: TrainConfig) -> "CinemoUNet":
    """The U-Net as init says, in training mode: a model's, LaVie's, or random from the seed."""
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
