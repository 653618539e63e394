"""Pictures to animate: crops of photos, drawn pictures, and composed scenes of sky, water, land and foreground objects.

Composed scenes come with masks of their sky and water.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cinemo.synthetic.images import dead_leaves, fractal_noise, gradients
from recipes.builtin_tiny.photos import SKIES, load

SKY_TONES = (
    (0.35, 0.55, 0.9), (0.6, 0.7, 0.8), (0.9, 0.6, 0.4), (0.2, 0.25, 0.45), (0.75, 0.75, 0.78), (0.05, 0.06, 0.15),
)  # fmt: skip
WATER_TONES = (
    (0.1, 0.3, 0.45), (0.15, 0.35, 0.35), (0.25, 0.3, 0.35), (0.3, 0.5, 0.6), (0.1, 0.12, 0.2), (0.5, 0.5, 0.55),
)  # fmt: skip


def crop(pixels: np.ndarray, rng: np.random.Generator, size: tuple[int, int], least: float = 0.45) -> np.ndarray:
    """Crop uint8 (H, W, 3) at random to the aspect ratio of `size`, at least `least` of the largest crop; resize it."""
    height, width = pixels.shape[:2]
    scale = min(height / size[0], width / size[1]) * rng.uniform(least, 1.0)
    h, w = size[0] * scale, size[1] * scale
    top, left = rng.uniform(0, height - h), rng.uniform(0, width - w)
    image = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))
    return np.asarray(image)


def picture(rng: np.random.Generator, size: tuple[int, int], folder: Path, names: list[str]) -> np.ndarray:
    """Make a picture without masks: seven of ten are crops of photos, the others are drawn."""
    if rng.random() < 0.7:
        return crop(load(folder, names[rng.integers(len(names))]), rng, size)
    draw = (fractal_noise, dead_leaves, gradients)[rng.choice(3, p=[0.3, 0.5, 0.2])]
    return crop(draw(rng), rng, size, 0.8)


def composed(
    rng: np.random.Generator, size: tuple[int, int], folder: Path, names: list[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Compose a scene of land, sky or water or both, and foreground objects: uint8 (H, W, 3), and masks.

    masks: "sky" and "water", float (H, W), 1 where it is visible; only those that cover more than a tenth.
    """
    height, width = size
    y = np.arange(height)[:, None] / height
    pixels = picture(rng, size, folder, names) / 255.0
    what = rng.choice(3, p=[0.4, 0.3, 0.3])  # sky, water, both
    masks = {}
    if what != 1:
        sky = y < skyline(rng, width, rng.uniform(0.25, 0.7), rng.choice([0.005, 0.03, 0.06]))
        pixels = np.where(sky[..., None], sky_texture(rng, size, folder), pixels)
        masks["sky"] = sky
    if what != 0:
        shore = skyline(rng, width, rng.uniform(0.5, 0.85), rng.choice([0.0, 0.01, 0.03]))
        water = y > shore
        if rng.random() < 0.3:  # a near shore
            water &= y < skyline(rng, width, rng.uniform(0.85, 1.1), 0.03)
        pixels = np.where(water[..., None], water_texture(rng, size, pixels, float(shore.mean())), pixels)
        masks["water"] = water
        if "sky" in masks:
            masks["sky"] = masks["sky"] & ~water
    front = foreground(rng, size)
    if front.any():
        texture = picture(rng, size, folder, names) / 255.0 * rng.choice([0.15, 0.5, 1.0])
        pixels = np.where(front[..., None], texture, pixels)
    visible = {name: (mask & ~front).astype(np.float32) for name, mask in masks.items()}
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8), {k: m for k, m in visible.items() if m.mean() > 0.1}


def skyline(rng: np.random.Generator, width: int, base: float, rough: float) -> np.ndarray:
    """Draw a horizon, in heights from the top: (width,). Hills, and sometimes roofs."""
    x = np.linspace(0, 1, width)
    line = np.full(width, base)
    for wave in range(1, 6):
        line += rough * rng.normal() / wave * np.sin(2 * np.pi * wave * x * rng.uniform(0.5, 1.5) + rng.uniform(0, 7))
    if rng.random() < 0.35:
        for _ in range(rng.integers(1, 8)):
            left = rng.integers(0, width - 20)
            line[left : left + rng.integers(10, width // 4)] -= rng.uniform(0, 0.25)
    return line


def noise(rng: np.random.Generator, size: tuple[int, int], stretch: float, power: float) -> np.ndarray:
    """Draw 1/f^power noise with mean 0 and deviation 1, stretched along x for stretch > 1: (H, W)."""
    height, width = size
    fy, fx = np.fft.fftfreq(height)[:, None] / stretch**0.5, np.fft.rfftfreq(width)[None] * stretch**0.5
    spectrum = 1 / np.maximum(np.hypot(fy, fx), 1 / height) ** power
    values = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(size)) * spectrum, s=size)
    return (values - values.mean()) / values.std()


def sky_texture(rng: np.random.Generator, size: tuple[int, int], folder: Path) -> np.ndarray:
    """Make a sky, float (H, W, 3): from a photo, or a gradient with clouds of noise."""
    if rng.random() < 0.45:
        name = list(SKIES)[rng.integers(len(SKIES))]
        pixels = load(folder, name)
        pixels = pixels[: int(len(pixels) * SKIES[name])]
        return crop(pixels[:, :: rng.choice([1, -1])], rng, size, 0.4) / 255.0
    tone = np.array(SKY_TONES[rng.integers(len(SKY_TONES))]) + rng.normal(0, 0.06, 3)
    y = np.arange(size[0])[:, None, None] / size[0]
    clouds = np.clip(noise(rng, size, rng.uniform(1, 3), rng.uniform(1.2, 1.9)) * 0.5 + 0.3, 0, 1)[..., None]
    clouds = clouds * rng.choice([0.0, 0.3, 0.7, 1.0], p=[0.15, 0.25, 0.3, 0.3])
    return np.clip((tone + y * rng.uniform(-0.1, 0.4)) * (1 - clouds) + clouds * rng.uniform(0.6, 1), 0, 1)


def water_texture(rng: np.random.Generator, size: tuple[int, int], above: np.ndarray, shore: float) -> np.ndarray:
    """Make water, float (H, W, 3): waves of noise over a tone, partly with a reflection of what is above it."""
    tone = np.array(WATER_TONES[rng.integers(len(WATER_TONES))]) + rng.normal(0, 0.05, 3)
    waves = noise(rng, size, rng.uniform(2, 8), rng.uniform(0.7, 1.4))[..., None] * rng.choice([0.01, 0.04, 0.1])
    row = int(shore * size[0])
    mirrored = above[np.abs(2 * row - np.arange(size[0])).clip(max=size[0] - 1)]
    share = rng.choice([0.0, 0.4, 0.8])
    return np.clip(tone * (1 - share) + mirrored * share * 0.9 + waves, 0, 1)


def foreground(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw a mask (H, W) of at most three foreground objects: poles, towers, trees, heads."""
    height, width = size
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.35, 0.3, 0.2, 0.15])):
        x, top = rng.uniform(0, width), rng.uniform(0.05, 0.6) * height
        half = rng.choice([0.008, 0.03, 0.1]) * height * rng.uniform(0.6, 1.6)
        kind = rng.integers(4)
        if kind == 0:
            draw.polygon(
                [(x - half, height), (x - half * rng.uniform(0.3, 1), top), (x + half, top), (x + half, height)], 255
            )
        elif kind == 1:  # a spire or a fir
            draw.polygon([(x - 3 * half, height), (x, top), (x + 3 * half, height)], 255)
        else:  # a tree or a head on a trunk
            radius = rng.uniform(0.05, 0.25) * height
            draw.ellipse((x - radius, top, x + radius, top + radius * rng.uniform(1.5, 2.5)), 255)
            draw.rectangle((x - half, top + radius, x + half, height), 255)
    return np.asarray(mask) > 0
