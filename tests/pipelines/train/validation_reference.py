"""The reference for validation: losses of the held-out clips, computed one clip and one timestep at a time."""

from typing import Any

import numpy as np
import torch

from cinemo import checkpoint
from cinemo.residual import training_loss
from pipelines.core import hashing
from pipelines.dataset import reader
from pipelines.train import data
from pipelines.train.batch import named_generator, text_features
from pipelines.train.config import TrainConfig
from pipelines.train.validation import BY_BUCKET, BY_FIFTH, TOTAL
from tests.pipelines.conftest import rows


def share_of(uris: set[str], videos: int) -> float:
    """Find the validation share that holds out exactly this number of videos."""
    hashes = hashing.hash64(sorted(uris))
    shares = (float(share) for share in np.linspace(0, 1, 10_001)[:-1])
    return next(share for share in shares if reader.is_held_out(hashes, share).sum() == videos)


def held_out_rows(config: TrainConfig) -> list[dict[str, Any]]:
    """Read the rows of a run's dataset whose videos are held out."""
    found = rows(config.dataset)
    held_out = reader.is_held_out(hashing.hash64(row["uri"] for row in found), config.validation_share)
    return [row for row, held in zip(found, held_out, strict=True) if held]


class ValidationReference:
    """Computes the validation losses of a run from the weights of its U-Net."""

    def __init__(self, config: TrainConfig) -> None:
        self.rows = held_out_rows(config)
        self.unet = data.load_unet(config).eval()
        source = data.directory(config)
        self.alphas = checkpoint.load_scheduler(source, data.prediction_type(config)).alphas_cumprod
        self.embed = text_features(source, torch.device("cpu"))
        self.cell = checkpoint.vae_factor(checkpoint.load_vae(source).config)

    @torch.no_grad()
    def losses(self, weights: dict[str, torch.Tensor]) -> dict[str, float]:
        """Compute mean losses, by the column names of validation.csv."""
        for name, weight in self.unet.named_parameters():
            weight.copy_(weights[name])
        losses: dict[str, list[float]] = {}
        for row in self.rows:
            shape = (1, row["num_frames"], -1, row["height"] // self.cell, row["width"] // self.cell)
            latents = torch.tensor(np.array(row["latents"], np.float32).reshape(shape)).transpose(1, 2)
            for fifth in range(5):
                generator = named_generator(f"validation\n{fifth}\n{row['clip_id']}")
                timestep = torch.randint(200 * fifth, 200 * fifth + 200, (), generator=generator)[None]
                noise = torch.randn(latents[0, :, 1:].shape, generator=generator)[None]
                text, bucket = self.embed(row["caption"])[None], torch.tensor([row["bucket"]])
                batch = (latents, text, bucket, timestep, noise, self.alphas)
                loss = training_loss(self.unet, *batch).item()
                for name in (TOTAL, BY_FIFTH[fifth], BY_BUCKET[row["bucket"]]):
                    losses.setdefault(name, []).append(loss)
        assert len({len(losses[name]) for name in BY_FIFTH}) == 1
        return {name: float(np.mean(values)) for name, values in losses.items()}
