"""The card of a model directory, cinemo.json: motion mapping, trained sizes and lengths, best settings, lineage."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cinemo.errors import redact
from cinemo.motion import OFFICIAL_MOTION, UNIFORM_MOTION, motion_id

CARD_NAME = "cinemo.json"
FORMAT_VERSION = 1
DEFAULT_SIZE = (320, 512)  # the paper's (H, W), for models that state none


@dataclass(frozen=True)
class ModelCard:
    """Contents of cinemo.json. Without the file: the official motion mapping, and any size or length is accepted."""

    motion: dict[str, Any] = field(default_factory=lambda: dict(UNIFORM_MOTION))
    sizes: list[tuple[int, int]] | None = None  # trained (height, width), pixels; the first is the default
    lengths: list[int] | None = None  # trained numbers of frames; the first is the default
    sampling: dict[str, float] = field(default_factory=dict)  # best num_inference_steps, guidance_scale, motion_bucket
    prompts: list[str] | None = None  # examples of what it was trained to animate
    lineage: dict[str, Any] = field(default_factory=dict)  # dataset fingerprint, run id, code version, ...
    format_version: int = FORMAT_VERSION

    @property
    def steps(self) -> int:
        """Denoising steps that suit the model; the paper's 50 if the card names none."""
        return int(self.sampling.get("num_inference_steps", 50))

    @property
    def size(self) -> tuple[int, int]:
        """Default size (H, W) in pixels; the paper's if the card names none."""
        return self.sizes[0] if self.sizes else DEFAULT_SIZE

    @property
    def length(self) -> int:
        """Default number of frames; the paper's 16 if the card names none."""
        return self.lengths[0] if self.lengths else 16

    @property
    def inversion_steps(self) -> int:
        """Steps for inverting a video: at least 25, even if fewer are enough to animate a photo."""
        return max(25, self.steps)

    @property
    def guidance(self) -> float:
        """Guidance scale that suits the model; the official 7.5 if the card names none."""
        return float(self.sampling.get("guidance_scale", 7.5))

    @property
    def bucket(self) -> int:
        """Motion bucket that suits the model; 10, the middle, if the card names none."""
        return int(self.sampling.get("motion_bucket", 10))


def read_card(directory: str | os.PathLike[str]) -> ModelCard:
    """Read a model directory's cinemo.json; without one, the official card. Raises ValueError if it cannot be read."""
    path = Path(directory) / CARD_NAME
    if not path.exists():
        return ModelCard(motion=dict(OFFICIAL_MOTION))
    try:
        raw = json.loads(path.read_text())
        if raw.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {raw.get('format_version')} is not {FORMAT_VERSION}; upgrade cinemo")
        raw["sizes"] = [(int(height), int(width)) for height, width in raw["sizes"]] if raw.get("sizes") else None
        card = ModelCard(**raw)
        bucket: Any = card.sampling.get("motion_bucket", card.bucket)
        motion_id(bucket, UNIFORM_MOTION)  # raises ValueError outside 0..19
        return card
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def write_card(directory: str | os.PathLike[str], card: ModelCard) -> None:
    (Path(directory) / CARD_NAME).write_text(redact(json.dumps(asdict(card), indent=2, sort_keys=True)) + "\n")
