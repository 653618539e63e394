"""Still images for synthetic clips: scikit-image's bundled photos and procedural pictures.

Some photos are held out for evaluation. Nothing is downloaded: only files inside the scikit-image wheel are read.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

CANVAS_SIZE = (288, 432)  # height, width in pixels: 2.25 times a 128 x 192 window, so that a camera has room to travel

TRAINING_PHOTOS = (
    "astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "ihc.png", "retina.jpg", "hubble_deep_field.jpg",
    "camera.png", "brick.png", "grass.png", "gravel.png", "coins.png", "moon.png",
)  # fmt: skip
HELD_OUT_PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg")  # for evaluation: no training clip ever shows them


@lru_cache(maxsize=32)
def photo(name: str) -> np.ndarray:
    """A bundled photo as uint8 (H, W, 3), RGB. Raises ValueError for a name that is not in the two lists above."""
    if name not in TRAINING_PHOTOS + HELD_OUT_PHOTOS:
        known = ", ".join(TRAINING_PHOTOS + HELD_OUT_PHOTOS)
        raise ValueError(f"photo {name!r} is not one of the bundled photos; choose from {known}")
    path = Path(skimage.__file__).parent / "data" / name
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@lru_cache(maxsize=1024)
def canvas(index: int, held_out: bool = False) -> np.ndarray:
    """Picture number `index` of an endless, fixed series, as uint8 (288, 432, 3): the scene that a camera looks at.

    Even numbers are crops of photos, odd ones are procedural (none of them when `held_out`: then all are crops of the
    held-out photos). The same index always gives the same picture.
    """
    rng = np.random.default_rng([index, int(held_out)])
    if held_out:
        return photo_crop(photo(HELD_OUT_PHOTOS[index % len(HELD_OUT_PHOTOS)]), rng)
    if index % 2 == 0:
        return photo_crop(photo(TRAINING_PHOTOS[index // 2 % len(TRAINING_PHOTOS)]), rng)
    draw = (fractal_noise, dead_leaves, gradients)[(0, 1, 1, 1, 2)[index // 2 % 5]]
    return draw(rng)


def photo_crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random 3:2 crop of uint8 (H, W, 3), at least half of the largest that fits, resized to CANVAS_SIZE."""
    height, width = pixels.shape[:2]
    fit = min(height / CANVAS_SIZE[0], width / CANVAS_SIZE[1]) * rng.uniform(0.5, 1.0)
    h, w = int(CANVAS_SIZE[0] * fit), int(CANVAS_SIZE[1] * fit)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    box = (int(left), int(top), int(left) + w, int(top) + h)
    resized = Image.fromarray(pixels).resize(CANVAS_SIZE[::-1], Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized)


def fractal_noise(rng: np.random.Generator) -> np.ndarray:
    """Coloured 1/f^a noise, like clouds or stone: uint8 (288, 432, 3)."""
    height, width = CANVAS_SIZE
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    spectrum = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / height) ** rng.uniform(1.1, 2.0)
    layers = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, height, width))) * spectrum, s=(height, width))
    layers /= layers.std(axis=(1, 2), keepdims=True)
    colours = rng.normal(0, 0.15, (3, 3)) + 0.4  # the positive part is shared: mostly grey variation, as in nature
    values = 0.5 + 0.25 * np.einsum("lhw,lc->hwc", layers, colours) + rng.uniform(-0.15, 0.15, 3)
    return to_uint8(values)


def gradients(rng: np.random.Generator) -> np.ndarray:
    """Smooth colour fields with a few sharp stripes or discs: uint8 (288, 432, 3)."""
    height, width = CANVAS_SIZE
    corners = (rng.uniform(0, 1, (3, 3, 3)) * 255).astype(np.uint8)
    resample = Image.Resampling.BICUBIC
    values = np.asarray(Image.fromarray(corners).resize((width, height), resample), np.float64) / 255
    y, x = np.mgrid[0:height, 0:width]
    for _ in range(rng.integers(2, 9)):
        colour, angle, period = rng.uniform(0, 1, 3), rng.uniform(0, np.pi), rng.uniform(24, 200)
        centre, radius = rng.uniform(0, 1, 2) * CANVAS_SIZE, rng.uniform(20, 100)
        disc = np.hypot(y - centre[0], x - centre[1]) < radius
        stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period) > rng.uniform(-0.5, 0.9)
        values[disc & stripes if rng.random() < 0.5 else disc] = colour
    return to_uint8(values)


def dead_leaves(rng: np.random.Generator) -> np.ndarray:
    """Overlapping shapes with a power law of sizes, plain or textured by photos and noise: uint8 (288, 432, 3).

    Edges, corners and occlusions like those of photographs, in colours that no single photo has.
    """
    height, width = CANVAS_SIZE
    texture = photo_crop(photo(TRAINING_PHOTOS[rng.integers(len(TRAINING_PHOTOS))]), rng) / 255.0
    values = fractal_noise(rng) / 255.0
    palette = np.clip(rng.uniform(0, 1, (12, 1)) + rng.normal(0, 0.2, (12, 3)), 0, 1)
    for _ in range(rng.integers(40, 140)):
        radius = min(8 / np.sqrt(rng.uniform(0.003, 1)), 140)
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        top, bottom = int(max(cy - radius, 0)), int(min(cy + radius + 1, height))
        left, right = int(max(cx - radius, 0)), int(min(cx + radius + 1, width))
        y, x = np.mgrid[top:bottom, left:right]
        y, x = (y - cy) / radius, (x - cx) / radius
        angle, power, squeeze = rng.uniform(0, np.pi), rng.choice([1.0, 2.0, 8.0]), rng.uniform(0.25, 1)
        a, b = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / squeeze
        inside = np.abs(a) ** power + np.abs(b) ** power < 0.7
        colour = palette[rng.integers(len(palette))]
        shade = colour * (1 + rng.uniform(-0.4, 0.4) * a[..., None])
        if rng.random() < 0.4:
            shade = shade + texture[top:bottom, left:right] - texture[top:bottom, left:right].mean((0, 1))
        values[top:bottom, left:right][inside] = shade[inside]
    return to_uint8(values)


@lru_cache(maxsize=256)
def veil(kind: str, index: int) -> np.ndarray:
    """Opacity of veil number `index` of a kind, a layer in front of the scene: uint8 (288, 432), periodic.

    kind: "snow" (soft discs), "rain" (streaks), "bubbles" (rings) or "clouds" (fractal noise).
    """
    rng = np.random.default_rng([index, *kind.encode()])
    if kind == "clouds":
        grey = fractal_noise(rng).mean(axis=2) / 255
        return to_uint8(1.6 * (grey - np.quantile(grey, 0.4)) / np.ptp(grey))
    height, width = CANVAS_SIZE
    hidden = np.zeros(CANVAS_SIZE)
    y, x = np.mgrid[-32:33, -32:33]
    for _ in range({"snow": 90, "rain": 110, "bubbles": 36}[kind]):
        size, opacity = rng.uniform(0.6, 1.4), rng.uniform(0.5, 0.95)
        if kind == "rain":
            shape = np.exp(-((x + 0.1 * y) ** 2) / 2) * (np.abs(y) < 18 * size)
        elif kind == "snow":
            shape = np.exp(-(x**2 + y**2) / (2 * (2.2 * size) ** 2))
        else:
            shape = np.exp(-((np.hypot(x, y) - 9 * size) ** 2) / 3)
        rows = (y[:, :1] + rng.integers(height)) % height
        columns = (x[:1] + rng.integers(width)) % width
        hidden[rows, columns] = np.maximum(hidden[rows, columns], opacity * shape)
    return to_uint8(hidden)


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Convert numbers in [0, 1] to uint8; others are clipped."""
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
