"""Motions that the built-in model learns: of the camera and of what moves by itself, and their wordings.

Displacements are those of cinemo.autoencoder: they lead from a pixel to its content's place in the first frame, in
pixels. "The camera pans left" shows what lies to the left: displacements are negative, content moves to the right.
"Clouds drift left" moves the clouds themselves to the left: displacements are positive.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cinemo.autoencoder.warp import pixel_grid
from cinemo.synthetic.captions import SCENE_SHARE, SCENES

VECTORS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
WAYS = {
    "pan": ("left", "right", "up", "down"),
    "zoom": ("in", "out"),
    "rotate": ("clockwise", "counterclockwise"),
    "clouds": ("left", "right"),
}
# Oscillations begin at rest and have a fixed phase, so that words and picture determine them: a random phase would have
# to be sampled, which few steps do badly. Form, waves per height, radians a frame, largest amplitude.
WAVES = {
    "sway": ("rows", 1.0, 0.5, 0.12),
    "ripple": ("rings", 1.5, 0.5, 0.05),
    "breathe": ("breath", 1.0, 0.45, 0.10),
    "water": ("rows", 3.0, 0.5, 0.06),
}
SHAKE = (0.7, 1.3, 0.9, 1.5, 0.0, 1.0, 2.0, 3.0)  # two waves for each axis: radians a frame; phases
# How often each kind is drawn: for pictures without masks, and with masks.
WHOLE = {
    "pan": 0.34, "zoom": 0.14, "rotate": 0.11, "both": 0.12, "shake": 0.07, "still": 0.06, "sway": 0.06, "ripple": 0.05,
    "breathe": 0.05,
}  # fmt: skip
MASKED = {"region": 0.70, "camera and region": 0.12, "pan": 0.08, "zoom": 0.05, "still": 0.05}
REFERENCE = 320.0  # pixels: the height that speeds refer to
SLOWEST, FASTEST = 0.1, 24.0  # pixels a frame
ARM = 150.0  # pixels: the distance from the middle at which a zoom or a turn has its speed
MOST_ZOOM_IN, MOST_ZOOM_OUT, MOST_TURN = 0.075, 0.045, 0.06  # a frame; after fifteen, something must still be in view
PACE_SHARE = 0.25  # share of the captions that name the pace


@dataclass(frozen=True)
class Motion:
    """One motion. Lengths are in heights of 320 pixels, times in frames."""

    parts: tuple[tuple[str, str], ...]  # (kind, direction) of each part, for the caption
    speed: float  # of the fastest part, pixels a frame at 320 rows
    velocity: tuple[float, float] = (0.0, 0.0)
    zoom: float = 0.0  # growth of the log magnification a frame
    turn: float = 0.0  # radians a frame, clockwise
    shake: float = 0.0  # amplitude of a hand-held camera
    drift: tuple[float, float] = (0.0, 0.0)  # of the region's content
    wave: float = 0.0  # amplitude
    shape: str = ""  # of the wave, a name of WAVES
    region: str = ""  # "sky" or "water": where something moves by itself; "" is everywhere

    @property
    def oscillates(self) -> bool:
        """Whether the speed varies over time."""
        return bool(self.shake or self.wave)


def draw_motion(rng: np.random.Generator, regions: tuple[str, ...] = ()) -> Motion:
    """Draw a random motion for a picture with these regions ("sky", "water")."""
    shares = MASKED if regions else WHOLE
    kind = str(rng.choice(list(shares), p=list(shares.values())))
    speed = float(np.exp(rng.uniform(np.log(SLOWEST), np.log(FASTEST))))
    if kind == "both":
        first, second = (camera(rng, k, speed) for k in map(str, rng.permutation(["pan", "zoom", "rotate"])[:2]))
        return replace(
            first,
            parts=first.parts + second.parts,
            velocity=(first.velocity[0] + second.velocity[0], first.velocity[1] + second.velocity[1]),
            zoom=first.zoom + second.zoom, turn=first.turn + second.turn,
        )  # fmt: skip
    if kind == "region":
        return regional(rng, str(rng.choice(regions)), min(speed, 12.0))
    if kind == "camera and region":
        local = regional(rng, str(rng.choice(regions)), min(speed, 6.0))
        moved = camera(rng, str(rng.choice(["pan", "zoom"])), min(speed, 6.0))
        return replace(local, parts=moved.parts + local.parts, velocity=moved.velocity, zoom=moved.zoom)
    if kind in ("sway", "ripple", "breathe"):
        return waving(kind, min(speed, 10.0))
    return camera(rng, kind, speed)


def camera(rng: np.random.Generator, kind: str, speed: float, way: str = "") -> Motion:
    """Make a motion of the camera: pan, zoom, rotate, shake, or still."""
    way = way or (str(rng.choice(WAYS[kind])) if kind in WAYS else "")
    motion = Motion(((kind, way),), speed)
    if kind == "pan":
        return replace(motion, velocity=(VECTORS[way][0] * speed / REFERENCE, VECTORS[way][1] * speed / REFERENCE))
    if kind == "zoom":
        most = MOST_ZOOM_IN if way == "in" else MOST_ZOOM_OUT
        return replace(motion, zoom=min(speed / ARM, most) * (1 if way == "in" else -1))
    if kind == "rotate":
        return replace(motion, turn=min(speed / ARM, MOST_TURN) * (1 if way == "clockwise" else -1))
    if kind == "shake":
        return replace(motion, shake=min(1.6 * speed / REFERENCE, 0.08))
    return replace(motion, speed=0.0)


def regional(rng: np.random.Generator, region: str, speed: float) -> Motion:
    """Make clouds drift in the sky, or waves on water."""
    if region == "sky":
        way = str(rng.choice(WAYS["clouds"]))
        return Motion((("clouds", way),), speed, drift=(VECTORS[way][0] * speed / REFERENCE, 0.0), region=region)
    return replace(waving("water", speed), region=region)


def waving(kind: str, speed: float) -> Motion:
    """Make an oscillation: of rows of the picture, rings around its middle, a breath, or water."""
    _, _, pace, most = WAVES[kind]
    return Motion(((kind, ""),), speed, wave=min(1.6 * speed / pace / REFERENCE, most), shape=kind)


def camera_displacement(motion: Motion, times: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Displacement by the camera: times (T,), x, y (h, w) in heights from the middle -> (T, 2, h, w) in heights."""
    t = times.float()[:, None, None]
    if motion.shake:
        speeds, phases = torch.tensor(SHAKE, device=x.device).view(2, 2, 2, 1, 1, 1)  # axis, wave
        swing = motion.shake * (torch.sin(speeds * t + phases) - torch.sin(phases)).sum(dim=1) / 2
        return swing.transpose(0, 1).expand(-1, -1, *x.shape)
    scale = torch.exp(-motion.zoom * t)
    # The content turns by +angle, so the lookup turns by -angle.
    cos, sin = torch.cos(motion.turn * t) * scale, torch.sin(motion.turn * t) * scale
    across = cos * x + sin * y - x + motion.velocity[0] * t
    return torch.stack([across, cos * y - sin * x - y + motion.velocity[1] * t], 1)


def local_displacement(motion: Motion, times: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Displacement by what moves by itself, before masking: shapes as in camera_displacement."""
    t = times.float()[:, None, None]
    if not motion.wave:
        drift = torch.tensor(motion.drift, device=x.device).view(1, 2, 1, 1)
        return -drift * t[:, None].expand(-1, 2, *x.shape)
    form, number, pace, _ = WAVES[motion.shape]
    radius = torch.hypot(x, y)
    if form == "breath":  # expands and contracts around the middle, and is still at the borders
        weight = -motion.wave * torch.exp(-4 * radius**2) * torch.sin(pace * t)
        return torch.stack([weight * x, weight * y], 1)
    along = 2 * np.pi * number * (radius if form == "rings" else y)
    swing = motion.wave * (torch.sin(along - pace * t) - torch.sin(along))
    if form == "rings":
        near = radius.clamp(min=0.05)
        return torch.stack([swing * x / near, swing * y / near], 1)
    return torch.stack([swing.expand(-1, *x.shape), 0.25 * swing.expand(-1, *x.shape)], 1)


def grid(rows: int, columns: int, step: float) -> tuple[Tensor, Tensor]:
    """Coordinates x and y of blocks of `step` pixels, in heights of 320 pixels from the middle: twice (h, w)."""
    x, y = pixel_grid(rows, columns)
    return (x - columns / 2) * step / REFERENCE, (y - rows / 2) * step / REFERENCE


PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("zoom", "in"): (
        "the camera zooms in", "zooming in", "zoom in", "the camera moves closer", "the view zooms in", "dolly in",
        "the camera pushes in", "a zoom in", "the camera dollies in", "the camera moves forward",
    ),
    ("zoom", "out"): (
        "the camera zooms out", "zooming out", "zoom out", "the camera moves away", "the view zooms out", "dolly out",
        "the camera pulls back", "a zoom out", "the camera dollies out", "the camera moves backward",
    ),
    ("rotate", "clockwise"): (
        "the picture rotates clockwise", "the view turns clockwise", "spinning clockwise", "the camera rolls clockwise",
        "the image rotates clockwise", "rotate clockwise",
    ),
    ("rotate", "counterclockwise"): (
        "the picture rotates counterclockwise", "the view turns counterclockwise", "spinning counterclockwise",
        "the camera rolls counterclockwise", "the image rotates anticlockwise", "rotate counterclockwise",
    ),
    ("shake", ""): ("the camera shakes", "a handheld camera", "a shaky view", "the picture trembles", "camera shake"),
    ("still", ""): ("nothing moves", "a still picture", "a static shot", "the camera does not move", "static"),
    ("sway", ""): (
        "everything sways from side to side", "swaying in the wind", "the scene sways", "leaves sway in the wind",
        "the flowers sway", "the trees sway in the wind", "grass waves in the wind", "it sways gently in the breeze",
    ),
    ("ripple", ""): ("ripples spread from the middle", "circular waves run through the picture", "ripples spread out"),
    ("breathe", ""): ("it breathes", "breathing", "the subject breathes", "the cat breathes", "a breathing chest"),
    ("clouds", "left"): (
        "clouds drift to the left", "the clouds move left", "the wind blows clouds left", "clouds drift left",
        "the sky moves to the left", "mist drifts to the left",
    ),
    ("clouds", "right"): (
        "clouds drift to the right", "the clouds move right", "the wind blows clouds right", "clouds drift right",
        "the sky moves to the right", "mist drifts to the right",
    ),
    ("water", ""): (
        "waves on the water", "the water ripples", "water ripples", "the water moves", "the sea moves",
        "waves roll in the sea", "the lake ripples", "the river flows", "the waves move",
    ),
}  # fmt: skip
PANS = (
    "the camera pans {way}", "panning {way}", "pan {way}", "the camera turns {way}", "the view pans {way}",
    "camera panning to the {way}", "the camera looks {way}", "a pan {way}", "the camera moves {way}",
)  # fmt: skip
TILTS = ("the camera tilts {way}", "tilt {way}", "the camera tilts {way}wards")
PACES = {"slow": ("slowly", "gently", "slightly", "slow", "gentle"), "fast": ("quickly", "fast", "rapidly", "quick")}
UNUSED = (  # in the tokenizer's vocabulary, but in no caption yet
    "the light flickers", "flickering light", "the brightness pulses", "the light pulses",
)  # fmt: skip
JOINTS = (" and ", ", ", " while ", " and then ")


def phrases(kind: str, way: str) -> tuple[str, ...]:
    """All wordings of a motion, the plain one first."""
    if kind != "pan":
        return PHRASES[kind, way]
    return tuple(text.format(way=way) for text in (PANS + TILTS if way in ("up", "down") else PANS))


def describe(motion: Motion, rng: np.random.Generator) -> str:
    """Draw a caption. Some captions name the pace, if the motion is slow or fast."""
    parts = []
    for kind, way in motion.parts:
        choices = phrases(kind, way)
        parts.append(choices[0] if rng.random() < 0.35 else choices[rng.integers(len(choices))])
    text = JOINTS[rng.integers(len(JOINTS))].join(parts)
    if rng.random() < PACE_SHARE and motion.speed:
        pace = "slow" if motion.speed < 1.5 else "fast" if motion.speed > 6 else None
        text += f" {PACES[pace][rng.integers(len(PACES[pace]))]}" if pace else ""
    if rng.random() < SCENE_SHARE:
        scene = SCENES[rng.integers(len(SCENES))]
        text = f"{scene}, {text}" if rng.random() < 0.5 else f"{text}, {scene}"
    return text


def all_words() -> list[str]:
    """All texts that captions are made of, to train the tokenizer on."""
    texts = [text for (kind, way) in PHRASES for text in phrases(kind, way)]
    texts += [text for way in VECTORS for text in phrases("pan", way)]
    return [
        *texts,
        *UNUSED,
        *SCENES,
        *(word for words in PACES.values() for word in words),
        *(j.strip(" ,") for j in JOINTS),
    ]
