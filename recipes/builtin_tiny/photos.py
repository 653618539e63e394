"""The photos that the built-in model is trained on, and those that it is tested on.

    python recipes/builtin_tiny/photos.py --photos out/photos

downloads Debian's wallpaper packages (mate-backgrounds, CC BY-SA and GPL, and plasma-workspace-wallpapers, GPL; each
file's author and licence are in the package's copyright file) and keeps the photographs among them. The other photos
are scikit-image's. Photos in JUDGING are never trained on.
"""

import argparse
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from cinemo.synthetic.images import TRAINING_PHOTOS as BUNDLED
from cinemo.synthetic.images import photo as bundled

PACKAGES = {
    "mate-backgrounds": "usr/share/backgrounds/mate/nature/{}.jpg",
    "plasma-workspace-wallpapers": "usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
}
TRAINING = {
    "mate-backgrounds": (
        "Aqua", "Blinds", "FreshFlower", "Garden", "GreenMeadow", "LadyBird", "RainDrops", "Storm", "TwoWings", "Wood",
        "YellowFlower",
    ),
    "plasma-workspace-wallpapers": (
        "Autumn", "ColorfulCups", "DarkestHour", "FallenLeaf", "Grey", "Kite", "OneStandsOut", "Path",
    ),
}  # fmt: skip
JUDGING = {
    "mate-backgrounds": ("Dune",),
    "plasma-workspace-wallpapers": ("BytheWater", "ColdRipple", "EveningGlow", "summer_1am"),
}
SKIES = {"Kite": 1.0, "Storm": 0.55, "DarkestHour": 0.5}  # share of the height, from the top, that is sky


def fetch(folder: Path) -> None:
    """Download the packages with apt-get, and keep their photos as folder/NAME.jpg. Raises CalledProcessError."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, place in PACKAGES.items():
        names = TRAINING[package] + JUDGING[package]
        if all((folder / f"{name}.jpg").exists() for name in names):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            subprocess.run(["apt-get", "download", package], cwd=temporary, check=True)
            archive = next(Path(temporary).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, temporary], check=True)
            for name in names:
                shutil.copyfile(Path(temporary) / place.format(name), folder / f"{name}.jpg")


def training_photos(folder: Path) -> list[str]:
    """Names of the photos to train on. Raises ValueError when the packages' photos are not in the folder."""
    names = [name for part in TRAINING.values() for name in part]
    missing = [name for name in names if not (folder / f"{name}.jpg").exists()]
    if missing:
        raise ValueError(
            f"--photos {folder} lacks {missing[0]}.jpg; run recipes/builtin_tiny/photos.py --photos {folder}"
        )
    return [*BUNDLED, *names]


@lru_cache(maxsize=64)
def load(folder: Path, name: str, longest: int = 1280) -> np.ndarray:
    """A photo by its name, at most `longest` pixels wide: uint8 (H, W, 3)."""
    if "." in name:
        return bundled(name)
    with Image.open(folder / f"{name}.jpg") as file:
        image = file.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(image)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder to write the photos to")
    fetch(parser.parse_args().photos)
