"""Plans of clips: kind, direction and strength of the motion, and all other numbers to render it, from one seed.

Lengths are in window heights, times in frames: a clip looks the same at every size. Image axes: x to the right, y down.
"""

from dataclasses import dataclass, field

import numpy as np

from cinemo.synthetic.captions import caption
from cinemo.synthetic.images import CANVAS_SIZE

DIRECTIONS: dict[str, tuple[str, ...]] = {
    "pan": ("left", "right", "up", "down"),
    "zoom": ("in", "out"),
    "rotate": ("clockwise", "counterclockwise"),
    "object": ("left", "right", "up", "down"),
    **dict.fromkeys(("sway", "ripple", "flicker", "still", "shake"), ("none",)),
    "clouds": ("left", "right"),
    "snow": ("down",),
    "rain": ("down",),
    "bubbles": ("up",),
    "stretch": ("wide",),
}
# Without "stretch", which no model has seen: `make demo` trains on it.
KINDS = tuple(kind for kind in DIRECTIONS if kind != "stretch")
VECTORS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
VEILS = 32  # of each kind
SCENES_IN_TRAINING = 768  # canvases that clips are made from; each is drawn once, in 15 ms

# At strength 1, per frame. A pan moves 7 pixels a frame at 128 x 192: on a detailed picture, bucket 15 and more.
FULL_PAN = 0.055
FULL_ZOOM = 0.06  # of the log magnification
FULL_ROTATION = 0.06  # radians
FULL_STRETCH = 0.06  # of the log width
FULL_OBJECT = 0.06
FULL_WAVE = 0.08  # amplitude, not speed
FULL_FLICKER = 0.5  # of the brightness
FULL_SHAKE = 0.04  # amplitude, not speed
FULL_VEIL = {"clouds": 0.06, "snow": 0.05, "rain": 0.2, "bubbles": 0.04}


@dataclass(frozen=True)
class Plan:
    """All that is needed to render one clip."""

    kind: str
    direction: str
    strength: float  # in [0, 1]; 0 moves nothing
    caption: str
    scene: int  # number of the canvas
    held_out: bool
    centre: tuple[float, float] = (0.5, 0.5)  # x, y of the window's middle at time 0, as a share of the canvas
    height: float = 0.5  # of the window, as a share of the canvas's height
    velocity: tuple[float, float] = (0.0, 0.0)  # of the camera
    zoom: float = 0.0  # growth of log magnification a frame
    stretch: float = 0.0  # growth of log width a frame
    rotation: float = 0.0  # radians a frame, of the content, clockwise where positive
    wave: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)  # amplitude, waves per height, radians a frame, phase
    radial: bool = False  # waves run from the middle, else they sway rows
    flicker: tuple[float, float, float] = (0.0, 0.0, 0.0)  # amplitude, radians a frame, phase
    shake: tuple[float, ...] = ()  # amplitude; then, two for each axis: radians a frame; phases
    veil: int = -1  # number of the veil, of the clip's kind, in front of the picture; -1 is none
    veil_velocity: tuple[float, float] = (0.0, 0.0)
    colour: np.ndarray = field(default_factory=lambda: np.eye(3))  # (3, 3), from the canvas's RGB to the clip's
    flip: bool = False  # the canvas is mirrored
    object_scene: int = -1  # canvas that textures the moving shape; -1 is no shape
    object_start: tuple[float, float] = (0.0, 0.0)  # x, y of its middle, from the window's middle
    object_velocity: tuple[float, float] = (0.0, 0.0)
    object_size: tuple[float, float, float] = (0.2, 0.2, 2.0)  # half width, half height, exponent (2 an ellipse)


def make_plan(
    seed: int, aspect: float = 1.5, duration: float = 15.0, kinds: tuple[str, ...] | None = None, held_out: bool = False
) -> Plan:
    """Draw the plan of clip number `seed`: the same arguments always give the same plan.

    aspect: width over height of the window. duration: from the first frame to the last, in frames at full speed.
    kinds: names from KINDS, all of them when None. Raises ValueError for an unknown kind.
    """
    kinds = KINDS if kinds is None else tuple(kinds)
    unknown = [kind for kind in kinds if kind not in DIRECTIONS]
    if unknown or not kinds:
        raise ValueError(f"kinds {kinds} holds {unknown or 'nothing'}; choose from {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, int(held_out)])
    kind = kinds[int(rng.integers(len(kinds)))]
    direction = DIRECTIONS[kind][int(rng.integers(len(DIRECTIONS[kind])))]
    strength = 0.0 if kind == "still" else float(rng.uniform(0, 1))
    scene = int(rng.integers(SCENES_IN_TRAINING))
    motion: dict = {}
    if kind == "pan":
        dx, dy = VECTORS[direction]
        speed = FULL_PAN * strength
        motion["velocity"] = (dx * speed, dy * speed)
    elif kind == "zoom":
        motion["zoom"] = FULL_ZOOM * strength * (1 if direction == "in" else -1)
    elif kind == "stretch":
        motion["stretch"] = FULL_STRETCH * strength
    elif kind == "rotate":
        motion["rotation"] = FULL_ROTATION * strength * (1 if direction == "clockwise" else -1)
    elif kind == "object":
        motion |= _moving_object(rng, direction, strength, duration, aspect)
    elif kind in ("sway", "ripple"):
        turns = (float(rng.uniform(0.8, 2.5)), float(rng.uniform(0.3, 0.7)), float(rng.uniform(0, 2 * np.pi)))
        motion |= {"wave": (FULL_WAVE * strength, *turns), "radial": kind == "ripple"}
    elif kind == "flicker":
        motion["flicker"] = (FULL_FLICKER * strength, float(rng.uniform(0.5, 1.5)), float(rng.uniform(0, 2 * np.pi)))
    elif kind == "shake":
        speeds, phases = rng.uniform(0.6, 1.6, 4), rng.uniform(0, 2 * np.pi, 4)
        motion["shake"] = (FULL_SHAKE * strength, *map(float, speeds), *map(float, phases))
    elif kind in FULL_VEIL:
        dx, dy = VECTORS[direction]
        speed, aside = FULL_VEIL[kind] * strength, float(rng.uniform(-0.15, 0.15))  # nothing falls straight
        motion["veil"] = int(rng.integers(VEILS))
        motion["veil_velocity"] = (speed * (dx + aside * dy), speed * (dy + aside * dx))
    height, centre = _window(rng, aspect, motion.get("velocity", (0.0, 0.0)), motion.get("zoom", 0.0), duration)
    return Plan(
        kind, direction, strength, caption(kind, direction, rng), scene, held_out, centre, height,
        colour=np.eye(3) if held_out else _colour(rng), flip=bool(rng.random() < 0.5), **motion,
    )  # fmt: skip


def _window(
    rng: np.random.Generator, aspect: float, velocity: tuple[float, float], zoom: float, duration: float
) -> tuple[float, tuple[float, float]]:
    """Height and first centre of the window, as shares of the canvas, such that its whole path stays on the canvas."""
    widest = np.exp(max(0.0, -zoom * duration))  # largest window, in heights of the first
    # Extent of the path, across and down, in window heights.
    covered = (aspect * widest + abs(velocity[0]) * duration, widest + abs(velocity[1]) * duration)
    share = (CANVAS_SIZE[0] / CANVAS_SIZE[1], 1.0)  # of the canvas's width and height, for one canvas height
    room = min(1 / (length * unit) for length, unit in zip(covered, share, strict=True))
    height = float(min(rng.uniform(0.4, 0.75), room))
    middle = []
    for size, speed, unit in zip((aspect, 1.0), velocity, share, strict=True):
        reach, travel = size * widest * height * unit / 2, speed * duration * height * unit
        low, high = reach - min(travel, 0.0), 1 - reach - max(travel, 0.0)
        middle.append(float(low + (high - low) * rng.random()))
    return height, (middle[0], middle[1])


def _moving_object(
    rng: np.random.Generator, direction: str, strength: float, duration: float, aspect: float
) -> dict[str, object]:
    """A shape with another canvas's texture that crosses the window and is never wholly outside it."""
    dx, dy = VECTORS[direction]
    speed = FULL_OBJECT * strength
    middle = (float(rng.uniform(-0.3, 0.3)) * aspect, float(rng.uniform(-0.3, 0.3)))
    half = duration / 2 * speed
    return {
        "object_scene": int(rng.integers(SCENES_IN_TRAINING)),
        "object_start": (middle[0] * abs(dy) - dx * half, middle[1] * abs(dx) - dy * half),
        "object_velocity": (dx * speed, dy * speed),
        "object_size": (
            float(rng.uniform(0.12, 0.3)), float(rng.uniform(0.12, 0.3)), float(rng.choice([1.2, 2.0, 6.0])),
        ),
    }  # fmt: skip


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Mixing matrix (3, 3) that shuffles, greys and dims channels, so that few photos show many colours."""
    mix = np.eye(3)[rng.permutation(3)] if rng.random() < 0.5 else np.eye(3)
    grey = rng.uniform(0, 1) if rng.random() < 0.3 else 0.0
    return (mix * (1 - grey) + grey / 3) * rng.uniform(0.6, 1.1)
