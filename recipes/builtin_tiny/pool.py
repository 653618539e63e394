"""Make clips to train on: the latents of their first frames, their motions and their buckets. No frames are stored.

    python recipes/builtin_tiny/pool.py --photos out/photos --pool out/pool --pictures 1200

A motion is a formula, so its residuals are computed during training; pixels are rendered only to measure the bucket.
Each picture is one file, written under a temporary name: a stop loses one picture, and the next call continues.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, Python sees only its own folder

from cinemo.autoencoder import AutoencoderMotion
from cinemo.autoencoder import channels as ch
from cinemo.autoencoder.warp import continued, upsample, warp
from cinemo.latents import to_frames, to_pixels
from cinemo.motion import NUM_BUCKETS, neighbour_ssim
from recipes.builtin_tiny.motions import Motion, camera_displacement, describe, draw_motion, grid, local_displacement
from recipes.builtin_tiny.photos import training_photos
from recipes.builtin_tiny.scenes import composed, picture

NUM_FRAMES = 16
SIZES = ((320, 512), (512, 320), (416, 416), (192, 320))
SIZE_SHARES = (0.7, 0.1, 0.1, 0.1)
MOTIONS = 8  # per picture
PART = ch.CELL // ch.LOCAL
REFERENCE = 320.0


def fields(motion: Motion, times: Tensor, rows: int, columns: int, masks: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Displacement by the camera (T, 2, h, w) and the local one (T, 2, 2h, 2w), in pixels, of cells and their parts."""
    camera = camera_displacement(motion, times, *grid(rows, columns, ch.CELL)) * REFERENCE
    local = local_displacement(motion, times, *grid(2 * rows, 2 * columns, PART)) * REFERENCE
    if motion.region:
        local = local * masks[motion.region]
    return camera, local


def frames_at(image: Tensor, motion: Motion, times: Tensor, masks: dict[str, Tensor]) -> Tensor:
    """Render frames (T, 3, H, W) of the image (3, H, W) under a motion, as the autoencoder would decode them."""
    height, width = image.shape[-2:]
    camera = camera_displacement(motion, times, *grid(height, width, 1)) * REFERENCE
    total = camera
    if motion.wave or any(motion.drift):
        _, local = fields(motion, times, height // ch.CELL, width // ch.CELL, masks)
        total = camera + upsample(local, height, width)
    canvas, top, left = continued(image)
    return warp(canvas[None], total, "bilinear", top, left)


def score_of(image: Tensor, motion: Motion, masks: dict[str, Tensor]) -> float:
    """Estimate the motion score of the clip from a few pairs of neighbouring frames."""
    starts = [0, 5, 10, 14] if motion.oscillates else [0, 7, 14]
    pairs = torch.tensor([time for start in starts for time in (start, start + 1)])
    frames = to_frames(frames_at(image, motion, pairs, masks))
    return float(np.mean([neighbour_ssim(frames[i : i + 2]).mean() for i in range(0, len(frames), 2)]))


def make_item(index: int, folder: Path, names: list[str], vae: AutoencoderMotion) -> dict:
    """Make picture number `index` and its motions, always the same."""
    rng = np.random.default_rng([77, index])
    size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
    masks: dict[str, Tensor] = {}
    if index % 5 < 2:
        pixels, regions = composed(rng, size, folder, names)
        masks = {name: F.avg_pool2d(torch.tensor(mask)[None, None], PART)[0, 0] for name, mask in regions.items()}
    else:
        pixels = picture(rng, size, folder, names)
    image = to_pixels(pixels[None])[0]
    motions = [draw_motion(rng, tuple(masks)) for _ in range(MOTIONS)]
    scores = [1.0 if motion.parts[0][0] == "still" else score_of(image, motion, masks) for motion in motions]
    return {"latents": vae.encode_image(image[None])[0].half(), "masks": masks, "motions": motions, "scores": scores}


def make_pool(folder: Path, photos: Path, pictures: int, first: int = 0) -> None:
    """Write the pictures that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    names, vae, began = training_photos(photos), AutoencoderMotion(), time.monotonic()
    for index in range(first, pictures):
        path = folder / f"{index:05d}.pt"
        if path.exists():
            continue
        torch.save(make_item(index, photos, names, vae), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        if index % 50 == 49:
            print(f"{index + 1} of {pictures} pictures, {time.monotonic() - began:.0f} s", flush=True)


@dataclass
class Batch:
    """A training batch. latents: (B, C, N, h, w). captions: one per clip. bucket: (B,)."""

    latents: Tensor
    captions: list[str]
    bucket: Tensor


class Pool:
    """The pictures in a folder; reload() adds those that were written since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.emphasis: Callable[[Motion], float] | None = None
        self.items: list[dict] = []
        self.seen: set[str] = set()
        self.reload()

    def reload(self) -> None:
        """Read new files."""
        for path in sorted(self.folder.glob("*.pt")):
            if path.name not in self.seen:
                self.seen.add(path.name)
                self.items.append(torch.load(path, weights_only=False))
        self.weigh(self.emphasis)

    def weigh(self, emphasis: Callable[[Motion], float] | None) -> None:
        """Weight the draws: rare buckets more often, and motions by the relative frequency `emphasis`."""
        self.emphasis = emphasis
        self.by_size: dict[tuple[int, int], list[tuple[dict, Motion, float]]] = {}
        for item in self.items:
            shape = tuple(item["latents"].shape[-2:])
            clips = self.by_size.setdefault(shape, [])
            clips += [
                (item, motion, NUM_BUCKETS * (1 - min(1.0, score)) - 0.5)  # a whole number is the middle of its bucket
                for motion, score in zip(item["motions"], item["scores"], strict=True)
            ]
        self.shapes = list(self.by_size)
        self.weights, sizes = {}, []
        for shape, clips in self.by_size.items():
            buckets = np.array([bucket for _, _, bucket in clips]).round().astype(int).clip(0, NUM_BUCKETS - 1)
            weight = 1 / np.maximum(np.bincount(buckets, minlength=NUM_BUCKETS)[buckets], 3) ** 0.5
            if emphasis:
                weight *= [emphasis(motion) for _, motion, _ in clips]
            self.weights[shape] = weight / weight.sum()
            sizes.append(len(clips))
        self.shares = np.array(sizes) / max(1, sum(sizes))

    def __len__(self) -> int:
        return sum(len(clips) for clips in self.by_size.values())

    def draw(self, batch: int, times: Tensor, rng: np.random.Generator) -> Batch:
        """Draw a batch of one size: frame 0 and the motion frames in `times`, randomly mirrored and recoloured."""
        shape = self.shapes[rng.choice(len(self.shapes), p=self.shares)]
        clips = self.by_size[shape]
        chosen = rng.choice(len(clips), batch, p=self.weights[shape])
        drawn = [augmented(clips[number][0], clips[number][1], times, rng) for number in chosen]
        bucket = torch.tensor([clips[number][2] for number in chosen], dtype=torch.float32)
        return Batch(torch.stack([latents for latents, _ in drawn]), [caption for _, caption in drawn], bucket)


def residuals_of(motion: Motion, latents: Tensor, masks: dict[str, Tensor], times: Tensor) -> Tensor:
    """Compute motion residuals (T, C, h, w) of the frames in `times` (without 0) for a first frame (C, h, w)."""
    rows, columns = latents.shape[-2:]
    whole = torch.arange(1, NUM_FRAMES)
    camera, local = fields(motion, whole, rows, columns, masks)
    camera = camera / whole.view(-1, 1, 1, 1)
    speed = ch.speed_of(camera, local)
    residuals = torch.zeros(len(times), ch.CHANNELS, rows, columns)
    residuals[:, ch.PACE.start :] = ch.motion_channels(camera[times - 1], local[times - 1], speed)
    return residuals


def augmented(item: dict, motion: Motion, times: Tensor, rng: np.random.Generator) -> tuple[Tensor, str]:
    """Augment a clip: latents (C, N, h, w) of frame 0 and the frames in `times`, and a caption.

    The picture is mirrored and recoloured at random; the motion stays the same.
    """
    first, masks = item["latents"].float(), item["masks"]
    first[ch.CODE] = recoloured(first[ch.CODE], rng)
    for axis in (-1, -2):
        if rng.random() < 0.5 and (axis == -1 or not masks):
            first = mirrored(first, axis)
            masks = {name: mask.flip(axis) for name, mask in masks.items()}
    clip = torch.cat([first[None], first[None] + residuals_of(motion, first, masks, times)])
    return clip.transpose(0, 1), describe(motion, rng)


def mirrored(first: Tensor, axis: int) -> Tensor:
    """Mirror the picture of latents (C, h, w); axis: -1 exchanges left and right, -2 up and down."""
    flipped = first.clone()
    luma, chroma = slice(0, ch.LUMA**2), slice(ch.LUMA**2, ch.CODE.stop)
    for span, factor in ((luma, ch.LUMA), (chroma, ch.CHROMA), (ch.LIKENESS, 1)):
        flipped[span] = F.pixel_unshuffle(F.pixel_shuffle(first[span], factor).flip(axis), factor)
    return flipped


def recoloured(code: Tensor, rng: np.random.Generator) -> Tensor:
    """Change hue and contrast of a first frame's code (24, h, w) at random."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 1.3)
    turn = strength * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
    chroma = torch.einsum("oc,cphw->ophw", turn, code[16:].unflatten(0, (2, 4))).flatten(0, 1)
    luma = code[:16] * rng.uniform(0.7, 1.2) + rng.uniform(-0.1, 0.1) * ch.LOOK
    return torch.cat([luma, chroma])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder written by photos.py")
    parser.add_argument("--pool", type=Path, required=True, help="folder of the pool")
    parser.add_argument("--pictures", type=int, default=1200, metavar="N", help="pictures in the whole pool")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_pool(arguments.pool, arguments.photos, arguments.pictures)
