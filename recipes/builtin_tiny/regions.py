"""Measure whether only the region that the prompt names moves: sky and water, masked by hand, on held-out photos.

Motion is the displacement that the autoencoder decodes, because optical flow fails where there is no texture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from cinemo.image import fit_pixels, read_image
from cinemo.latents import to_frames
from cinemo.synthetic.images import photo

SIZE = (320, 512)
PROMPTS = {"sky": "clouds drift to the left", "water": "waves on the water"}
# Polygons of x, y in pixels of 320 x 512: the region, and things in front of it.
RECTANGLE = ((0, 0), (512, 0))
MASKS: dict[tuple[str, str], tuple[tuple[tuple[int, int], ...], ...]] = {
    ("BytheWater", "sky"): ((*RECTANGLE, (512, 50), (400, 58), (0, 60)),),
    ("BytheWater", "water"): (((0, 82), (512, 78), (512, 116), (0, 158)),),
    ("ColdRipple", "sky"): ((*RECTANGLE, (512, 160), (0, 160)),),
    ("EveningGlow", "sky"): (
        (*RECTANGLE, (512, 78), (470, 92), (420, 105), (330, 108), (200, 105), (130, 100), (60, 85), (0, 105)),
    ),
    ("EveningGlow", "water"): (
        ((0, 122), (350, 122), (380, 140), (512, 145), (512, 150), (300, 155), (200, 155), (80, 165), (0, 170)),
    ),
    ("Dune", "sky"): ((*RECTANGLE, (512, 97), (0, 97)),),
    ("summer_1am", "sky"): ((*RECTANGLE, (512, 202), (0, 202)),),
    ("summer_1am", "water"): (((0, 212), (512, 212), (512, 320), (0, 320)),),
    ("rocket", "sky"): (
        ((75, 0), (440, 0), (440, 250), (75, 250)),
        ((244, 88), (272, 88), (272, 250), (244, 250)),
        ((152, 90), (160, 90), (168, 250), (144, 250)),
        ((354, 90), (362, 90), (370, 250), (348, 250)),
    ),
    ("car", "sky"): (
        (*RECTANGLE, (512, 30), (480, 45), (470, 110), (400, 95), (240, 90), (220, 120), (0, 125)),
        ((60, 0), (76, 0), (76, 125), (60, 125)),
    ),
}


def mask_of(polygons: tuple[tuple[tuple[int, int], ...], ...]) -> np.ndarray:
    """Mask of the first polygon without the others: float (320, 512)."""
    image = Image.new("L", SIZE[::-1])
    draw = ImageDraw.Draw(image)
    draw.polygon(polygons[0], 1)
    for hole in polygons[1:]:
        draw.polygon(hole, 0)
    return np.asarray(image, np.float32)


def load(name: str, folders: list[Path]) -> np.ndarray | None:
    """Read a held-out photo, fitted: uint8 (320, 512, 3); None if it is in no folder."""
    paths = [folder / f"{name}.jpg" for folder in folders if (folder / f"{name}.jpg").exists()]
    if not paths and name != "rocket":
        return None
    return to_frames(fit_pixels(read_image(str(paths[0]) if paths else photo("rocket.jpg")), *SIZE))[0]


def measure(pipe: Any, folders: list[Path], animate: Callable[..., list[Any]], bucket: int = 3) -> dict[str, float]:
    """Share of the motion that is in the region named by the prompt, for each available photo."""
    shares = {}
    for (name, region), polygons in MASKS.items():
        image = load(name, folders)
        if image is None:
            continue
        job = {"image": image, "prompt": PROMPTS[region], "motion_bucket": bucket, "seed": 0}
        residuals = torch.as_tensor(animate(pipe, [job], output_type="latent")[0]).transpose(0, 1)
        length = pipe.vae.displacement(residuals.float(), *SIZE).norm(dim=1).mean(0).numpy()
        shares[f"{name} {region}"] = float((length * mask_of(polygons)).sum() / max(length.sum(), 1e-6))
    return shares
