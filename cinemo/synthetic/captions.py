"""Captions: a small grammar for every kind of motion.

The first phrase of every list is the plain one, used in documentation and tests.

Convention, here and in every prompt of the built-in model: "the camera pans left" means that the camera turns left, so
that the picture's content moves to the right; "a shape moves left" means that the shape itself goes left.
"""

import numpy as np

PHRASES: dict[tuple[str, str], tuple[str, ...]] = {
    ("zoom", "in"): (
        "the camera zooms in", "zooming in", "a {pace} zoom in", "the camera moves closer",
        "the view zooms in {adverb}", "the camera pushes in",
    ),
    ("zoom", "out"): (
        "the camera zooms out", "zooming out", "a {pace} zoom out", "the camera moves away",
        "the view zooms out {adverb}", "the camera pulls back",
    ),
    ("rotate", "clockwise"): (
        "the picture rotates clockwise", "the view turns clockwise {adverb}", "spinning clockwise",
    ),
    ("rotate", "counterclockwise"): (
        "the picture rotates counterclockwise", "the view turns counterclockwise {adverb}", "spinning counterclockwise",
    ),
    ("stretch", "wide"): ("the picture stretches sideways", "it is pulled wide", "everything grows wide {adverb}"),
    ("sway", "none"): (
        "everything sways from side to side", "swaying in the wind", "the scene sways {adverb}",
        "gentle waves move through the picture",
    ),
    ("ripple", "none"): (
        "ripples spread from the middle", "ripples on water", "circular waves run through the picture",
    ),
    ("flicker", "none"): ("the light flickers", "flickering light", "the brightness pulses {adverb}"),
    ("still", "none"): ("nothing moves", "a still picture", "a static shot", "the camera does not move"),
    ("shake", "none"): ("the camera shakes", "a handheld camera", "a shaky view", "the picture trembles {adverb}"),
    ("clouds", "left"): ("clouds drift to the left", "mist drifts {adverb} to the left", "the wind blows clouds left"),
    ("clouds", "right"): (
        "clouds drift to the right", "mist drifts {adverb} to the right", "the wind blows clouds right",
    ),
    ("snow", "down"): ("snow falls", "snowflakes fall {adverb}", "it is snowing", "a {pace} snowfall"),
    ("rain", "down"): ("rain falls", "raindrops fall {adverb}", "it is raining", "a {pace} rain"),
    ("bubbles", "up"): ("bubbles rise", "bubbles float up {adverb}", "air bubbles rise through water"),
}  # fmt: skip
PAN_PHRASES = (
    "the camera pans {direction}", "panning {direction}", "a {pace} pan {direction}", "the camera turns {direction}",
    "the view pans {direction} {adverb}", "camera panning to the {direction}", "the camera looks {direction}",
)  # fmt: skip
OBJECT_PHRASES = (
    "a shape moves {direction}", "an object moves {direction} {adverb}",
    "something drifts {direction} over a still background", "a thing slides {direction}",
)  # fmt: skip
SCENES = (
    "a photo", "a cup of coffee on a table", "a cat", "a portrait of a woman", "a city street at night",
    "mountains and a lake", "a red car on the road", "flowers in a garden", "an abstract pattern",
    "a rocket on its launch pad", "stones on the ground", "a room with shelves",
)  # fmt: skip
WORDS = {
    "pace": ("slow", "smooth", "steady", "quick", "gentle"),
    "adverb": ("slowly", "smoothly", "steadily", "gently", "quickly"),
}
SCENE_SHARE = 0.3  # of captions also name a random scene, so that the model learns to find the motion among other words


def caption(kind: str, direction: str, rng: np.random.Generator) -> str:
    """Draw a caption from the grammar. Words for pace carry no meaning, because the motion bucket sets the pace."""
    template = _pick(_templates(kind, direction), rng)
    words = {name: _pick(choices, rng) for name, choices in WORDS.items()}
    text = template.format(direction=direction, **words)
    if rng.random() < SCENE_SHARE:
        scene = _pick(SCENES, rng)
        text = f"{scene}, {text}" if rng.random() < 0.5 else f"{text}, {scene}"
    return text


def plain_caption(kind: str, direction: str) -> str:
    """The plainest wording of a motion, for evaluation: ("pan", "left") gives "the camera pans left"."""
    return _templates(kind, direction)[0].format(direction=direction)


def _templates(kind: str, direction: str) -> tuple[str, ...]:
    if kind == "pan":
        return PAN_PHRASES
    return OBJECT_PHRASES if kind == "object" else PHRASES[kind, direction]


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
