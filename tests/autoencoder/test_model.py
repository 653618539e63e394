"""Clips as motion of their first frame: exact where motion explains all, as a model directory, at any size of cells."""

import numpy as np
import pytest
import torch

from cinemo.autoencoder import AutoencoderMotion
from cinemo.autoencoder import channels as ch
from cinemo.image import fit_pixels
from cinemo.latents import decode_latents, encode_frames, encode_pixels, to_pixels
from cinemo.synthetic import make_clip
from cinemo.synthetic.images import photo


@pytest.fixture(scope="module")
def vae() -> AutoencoderMotion:
    return AutoencoderMotion()


def coffee(height: int = 160, width: int = 256) -> torch.Tensor:
    return fit_pixels(photo("coffee.png"), height, width)[0]


def residuals_of(camera: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    made = torch.zeros(len(camera), ch.CHANNELS, *camera.shape[-2:])
    made[:, ch.PACE.start :] = ch.motion_channels(camera, local)
    return made


def db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-9)))


def test_a_still_clip_has_no_residuals_and_comes_back_bit_for_bit(vae):
    frames = ((coffee().permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    clip = np.stack([frames] * 4)[None]
    latents = encode_frames(vae, clip)
    residuals = latents[:, :, 1:] - latents[:, :, :1]
    assert float(residuals[:, ch.CODE].abs().max()) == 0
    assert np.array_equal(decode_latents(vae, latents, images=to_pixels(clip[0, :1])), clip)


def test_motion_channels_and_fields_are_inverse():
    camera, local = torch.randn(5, 2, 4, 6), torch.tensor([7.0, -20.0]).view(1, 2, 1, 1).expand(5, 2, 8, 12)
    found_camera, found_local = ch.motion_fields(residuals_of(camera, local))
    assert torch.allclose(found_camera, camera, atol=1e-4)
    assert torch.allclose(found_local, local, atol=1e-3)
    values = torch.randn(1000)
    back = ch.towards_zero(ch.away_from_zero(values, 0.5), 0.5)
    small = values.abs() < 0.5 * ch.LEAST
    assert torch.allclose(back[~small], values[~small], atol=1e-5)
    assert not back[small].any()


def test_a_fitted_code_is_nearer_to_the_pixels_than_their_means():
    pixels = coffee()[None]
    plain, fitted = (ch.from_code(code, 160, 256) for code in (ch.fit_code(pixels, 0), ch.fit_code(pixels, 1)))
    assert (fitted - pixels).square().mean() < 0.96 * (plain - pixels).square().mean()
    assert torch.equal(ch.fit_code(pixels, 0), ch.to_code(pixels))
    means = [(ch.to_code(made - pixels)).square().mean() for made in (plain, fitted)]
    assert means[1] < means[0] / 4


def test_noise_in_the_local_channels_and_the_code_moves_nothing(vae):
    image = coffee()
    first = vae.encode_image(image[None])
    camera = torch.tensor([4.0, 0.0]).view(1, 2, 1, 1).expand(6, 2, 5, 8)
    residuals = residuals_of(camera, torch.zeros(6, 2, 10, 16))
    clean = vae.decode(torch.cat([first, first + residuals]), image)
    residuals[:, ch.CODE] += 0.1 * torch.randn(residuals[:, ch.CODE].shape).clamp(-3, 3)
    residuals[:, ch.MOVES] += 0.05 * torch.randn(residuals[:, ch.MOVES].shape).clamp(-3, 3)
    assert torch.allclose(vae.decode(torch.cat([first, first + residuals]), image), clean, atol=1e-5)


def test_a_camera_without_tremor_is_kept_and_tremor_is_not(vae):
    image, generator = coffee(), torch.Generator().manual_seed(0)
    camera = torch.tensor([4.0, 1.0]).view(1, 2, 1, 1).expand(15, 2, 5, 8).clone()
    noisy = camera + 0.3 * torch.randn(15, 2, 1, 1, generator=generator)
    still = torch.zeros(15, 2, 10, 16)
    wanted = vae.displacement(residuals_of(camera, still), *image.shape[-2:])
    found = vae.displacement(residuals_of(noisy, still), *image.shape[-2:])
    raw = (noisy - camera).flatten(1).norm(dim=1).mean()
    assert ((found - wanted).diff(dim=0).abs().mean()) < 0.5 * raw
    shaken = torch.where(torch.arange(15).view(-1, 1, 1, 1) % 4 < 2, 5.0, -5.0).expand(15, 2, 5, 8)
    kept = vae.displacement(residuals_of(shaken, still), *image.shape[-2:])
    steps = torch.arange(1, 16).view(-1, 1)
    assert (kept[:, 0, 80, 128:129] / steps - shaken[:, 0, 0, :1]).abs().mean() < 1.0


@pytest.mark.parametrize(("kind", "least"), [("pan", 28.0), ("zoom", 28.0), ("rotate", 26.0), ("sway", 22.0)])
def test_clips_with_known_motion_come_back(vae, kind, least):
    clip = next(made for made in (make_clip(s, (160, 256), 8, (kind,)) for s in range(9)) if 0.1 < made.strength < 0.4)
    latents = encode_frames(vae, clip.frames[None])
    back = decode_latents(vae, latents, images=to_pixels(clip.frames[:1]))[0]
    assert db(clip.frames[1:], back[1:]) >= max(least, db(clip.frames[1:], clip.frames[:1]) + 3)


def test_a_photo_alone_and_the_first_frame_of_a_clip_have_the_same_latents(vae):
    clip = make_clip(3, (128, 192), 4)
    pixels = to_pixels(clip.frames)
    assert torch.equal(encode_pixels(vae, pixels[:1])[0], encode_frames(vae, clip.frames[None])[0, :, 0])


def test_decoding_needs_the_photo_and_encoding_whole_cells(vae):
    latents = encode_frames(vae, make_clip(3, (128, 192), 4).frames[None])
    with pytest.raises(ValueError, match="moves the photo"):
        decode_latents(vae, latents)
    with pytest.raises(ValueError, match="size 100 x 160 is not a multiple of 32"):
        vae.encode_image(torch.zeros(1, 3, 100, 160))


def test_it_is_saved_and_loaded_as_a_part_of_a_model_directory(vae, tmp_path):
    from cinemo.checkpoint import load_vae, vae_factor

    vae.save_pretrained(tmp_path / "vae")
    loaded = load_vae(tmp_path)
    assert isinstance(loaded, AutoencoderMotion)
    assert vae_factor(loaded.config) == 32
    with pytest.raises(ValueError, match="another version of cinemo"):
        AutoencoderMotion(latent_channels=5)
