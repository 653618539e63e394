"""The model in the package: small, complete, and as good as its card says."""

import numpy as np
import pytest
import torch

from cinemo.builtin import NAMES
from cinemo.checkpoint import load_text, load_vae, read_card, resolve
from cinemo.image import fit_pixels
from cinemo.latents import decode_latents, encode_frames
from cinemo.pipeline import CinemoPipeline
from cinemo.synthetic.images import HELD_OUT_PHOTOS
from recipes.builtin_tiny.evaluate import fitted_photo, psnr

DIRECTORY = resolve("builtin:tiny")
MAX_BYTES = 40_000_000
VAE_PSNR = 27.0  # dB, of each held-out photo


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_every_part(name):
    directory = resolve(name)
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    parts = {path.relative_to(directory).parts[0] for path in files}
    assert parts == {"unet", "vae", "text_encoder", "tokenizer", "scheduler", "cinemo.json"}
    card = read_card(directory)
    assert card.sizes == [(128, 192)]
    assert card.lengths == [16]


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


def test_its_vae_keeps_photos_it_never_saw():
    vae = load_vae(DIRECTORY)
    photos = [fitted_photo(name) for name in HELD_OUT_PHOTOS]
    latents = encode_frames(vae, np.stack(photos)[:, None])
    kept = [psnr(clip[0], photo) for clip, photo in zip(decode_latents(vae, latents), photos, strict=True)]
    assert min(kept) >= VAE_PSNR
    assert 10 < float(latents.std()) < 25  # the recipe's DEVIATION: the photo shows through the noise


def test_it_animates():
    pipe = CinemoPipeline.from_pretrained("builtin:tiny")
    photo = fitted_photo("coffee.png")
    out = pipe(photo, "the camera pans left", motion_bucket=12, num_inference_steps=4, guidance_scale=3, seed=1)
    assert out.frames.shape == (1, 16, 128, 192, 3)
    pixels = fit_pixels(photo, 128, 192)[0].permute(1, 2, 0).numpy()
    assert psnr(out.frames[0, 0], ((pixels + 1) * 127.5).round()) > VAE_PSNR
    assert np.abs(np.diff(out.frames[0].astype(float), axis=0)).mean() > 0.5
