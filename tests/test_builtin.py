"""The model in the package: small, complete, and as good as its card says."""

import logging

import numpy as np
import pytest
import torch

from cinemo.builtin import NAMES
from cinemo.checkpoint import load_text, read_card, resolve
from cinemo.commands.common import sentence
from cinemo.image import fit_pixels
from cinemo.latents import to_frames
from cinemo.metrics import flow, psnr
from cinemo.motion import motion_bucket, motion_score
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic.images import photo
from recipes.builtin_tiny.evaluate import MOVES
from recipes.builtin_tiny.pool import SIZES

DIRECTORY = resolve("builtin:tiny")
MAX_BYTES = 25_000_000


@pytest.fixture(scope="module")
def pipe() -> CinemoPipeline:
    pipe = CinemoPipeline.from_pretrained("builtin:tiny")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_every_part(name):
    directory = resolve(name)
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    parts = {path.relative_to(directory).parts[0] for path in files}
    assert parts == {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "cinemo.json"}
    card = read_card(directory)
    assert card.sizes == list(SIZES)
    assert card.lengths == [16]
    assert len(card.motion["ids"]) == 20


def test_the_name_of_the_model_before_loads_it_with_a_notice(caplog):
    with caplog.at_level(logging.WARNING, logger="cinemo"):
        assert resolve("builtin:velocity") == DIRECTORY
    assert "builtin:velocity is gone; builtin:tiny, which edits as well" in caplog.text


@pytest.mark.parametrize(
    "prompt",
    ["", "the camera pans left", "A Photograph of Zürich, 1899!", "東京の夜 🚀", "a\tb\nc  <d> 'e' \\", "x" * 500],
)
def test_its_tokenizer_takes_any_text(prompt):
    tokenizer, text_encoder = load_text(DIRECTORY)
    ids = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    assert int(ids.max()) < text_encoder.config.vocab_size
    with torch.no_grad():
        assert bool(torch.isfinite(text_encoder(ids).last_hidden_state).all())


def test_words_of_the_grammar_are_single_tokens():
    tokenizer, _ = load_text(DIRECTORY)
    tokens = tokenizer.tokenize("the camera pans left")
    assert tokens == ["the</w>", "camera</w>", "pans</w>", "left</w>"]


def test_it_goes_where_the_prompt_says_and_begins_with_the_photo(pipe):
    """Eight camera motions on one photo: all but one, at a bucket within three of the one that was asked for."""
    settings = {"num_inference_steps": pipe.card.steps, "guidance_scale": pipe.card.guidance}
    image = photo("coffee.png")
    pixels = to_frames(fit_pixels(image, *SIZES[0]))[0]
    right, errors = 0, []
    for kind, way in MOVES:
        prompt = f"the camera {kind}s {way}" if kind != "rotate" else f"the picture rotates {way}"
        clip = pipe(image, prompt, motion_bucket=6, seed=1, **settings).frames[0]
        assert psnr(clip[0], pixels) >= 45
        right += bool(flow.agrees(flow.measure(clip)[0], kind, way))
        errors.append(abs(motion_bucket(motion_score(clip)) - 6))
    assert right >= 7
    assert np.mean(errors) <= 3


@pytest.mark.parametrize("size", SIZES[1:])
def test_it_animates_at_every_size_of_its_card(pipe, size):
    wish = {"height": size[0], "width": size[1], "num_inference_steps": 1}
    frames = pipe(photo("rocket.jpg"), "the camera pans up", **wish).frames
    assert frames.shape == (1, 16, *size, 3)
    assert np.array_equal(frames, pipe(photo("rocket.jpg"), "the camera pans up", motion_bucket=6, **wish).frames)


def test_bucket_zero_is_still(pipe):
    settings = {"num_inference_steps": pipe.card.steps, "guidance_scale": pipe.card.guidance}
    clip = pipe(photo("coffee.png"), "the camera pans left", motion_bucket=0, **settings).frames[0]
    assert motion_score(clip) >= 0.97


def test_a_still_animation_where_motion_was_asked_for_names_prompts_that_it_follows() -> None:
    still, prompts = np.zeros((4, 16, 16, 3), np.uint8), read_card(DIRECTORY).prompts
    assert prompts
    assert "little moves; this model follows prompts such as 'the camera zooms in'" in sentence(still, 10, prompts)
    for quiet in (sentence(still, 3, prompts), sentence(still, 10)):
        assert "\n" not in quiet
