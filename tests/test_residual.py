"""Algorithm 1 and Eq. 3."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from cinemo.residual import add_noise, min_snr_weights, motion_residuals, prediction_target, training_loss


def clip(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, 4, 5, 6, 7, generator=generator),
        "text": torch.zeros(batch, 3, 8),
        "motion_bucket": torch.zeros(batch, dtype=torch.long),
        "timesteps": torch.tensor([3, 900][:batch]),
        "noise": torch.randn(batch, 4, 4, 6, 7, generator=generator),
        "alphas_cumprod": DDIMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod,
    }


def test_residuals_and_the_image_give_the_clip_back() -> None:
    latents = clip()["latents"]
    assert torch.allclose(latents[:, :, :1] + motion_residuals(latents), latents[:, :, 1:], atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_unet_gets_what_diffusers_own_scheduler_would_give_it(prediction_type: str) -> None:
    batch = clip()
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type=prediction_type)
    residuals = motion_residuals(batch["latents"])
    expected_input = scheduler.add_noise(residuals, batch["noise"], batch["timesteps"])
    target = {
        "epsilon": batch["noise"],
        "v_prediction": scheduler.get_velocity(residuals, batch["noise"], batch["timesteps"]),
        "sample": residuals,
    }[prediction_type]

    def unet(sample: torch.Tensor, timestep: Any, text: Any, image: torch.Tensor, motion: Any) -> SimpleNamespace:
        assert torch.allclose(sample, expected_input, atol=1e-6)
        assert torch.equal(image, batch["latents"][:, :, :1])
        return SimpleNamespace(sample=target + 2)

    assert training_loss(unet, **batch, prediction_type=prediction_type).item() == pytest.approx(4.0, rel=1e-5)


def test_losses_of_single_clips_average_to_the_batch_s() -> None:
    batch = clip()

    def unet(sample: torch.Tensor, *rest: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=sample)

    each = training_loss(unet, **batch, reduction="none")
    assert each.shape == (2,)
    assert each.mean().item() == pytest.approx(training_loss(unet, **batch).item())
    frames = training_loss(unet, **batch, reduction="frames")
    assert frames.shape == (2, 4)
    assert torch.allclose(frames.mean(1), each)


def test_channels_count_as_they_are_weighted() -> None:
    batch = clip()
    channels = batch["latents"].shape[1]

    def wrong_in_the_last(sample: torch.Tensor, *rest: Any) -> SimpleNamespace:
        answer = batch["noise"].clone()
        answer[:, -1] += 2
        return SimpleNamespace(sample=answer)

    weights = torch.ones(channels)
    weights[-1] = 3.0
    plain = training_loss(wrong_in_the_last, **batch).item()
    assert plain == pytest.approx(4 / channels, rel=1e-5)
    assert training_loss(wrong_in_the_last, **batch, channel_weights=weights).item() == pytest.approx(3 * plain)


def test_an_unknown_prediction_type_is_named() -> None:
    with pytest.raises(ValueError, match="'x0'"):
        training_loss(lambda sample, *rest: SimpleNamespace(sample=sample), **clip(), prediction_type="x0")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_every_prediction_like_the_residuals_that_it_implies(prediction_type: str) -> None:
    """An error of the residuals counts min(SNR, gamma) times its square, in whatever terms the network predicts."""
    alphas = DDIMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod.double()
    timesteps = torch.tensor([0, 50, 100, 250, 500, 750, 999])
    alpha_bar = alphas[timesteps]
    generator = torch.Generator().manual_seed(2)
    residuals, noise, error = (
        torch.randn(len(timesteps), 2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    noisy, level = add_noise(residuals, noise, alpha_bar), alpha_bar.view(-1, 1, 1, 1, 1)
    believed = residuals + error  # what the network takes the residuals for
    implied_noise = (noisy - level.sqrt() * believed) / (1 - level).sqrt()
    answer = prediction_target(believed, implied_noise, alpha_bar, prediction_type)
    squared = (answer - prediction_target(residuals, noise, alpha_bar, prediction_type)).square().mean((1, 2, 3, 4))
    weighted = squared * min_snr_weights(alpha_bar, 5.0, prediction_type)
    snr = alpha_bar / (1 - alpha_bar)
    torch.testing.assert_close(weighted, snr.clamp(max=5.0) * error.square().mean((1, 2, 3, 4)))


def test_min_snr_weighs_single_clips_and_is_finite_without_signal_or_noise() -> None:
    batch = clip()
    batch["alphas_cumprod"] = batch["alphas_cumprod"].clone()
    batch["alphas_cumprod"][3], batch["alphas_cumprod"][900] = 0.9, 0.0  # SNR 9 and 0

    def unet(sample: torch.Tensor, *rest: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=batch["noise"] + 2)

    assert training_loss(unet, **batch, reduction="none").tolist() == pytest.approx([4.0, 4.0])
    weighted = training_loss(unet, **batch, reduction="none", min_snr_gamma=5.0)
    assert weighted.tolist() == pytest.approx([4.0 * 5 / 9, 4.0])
    assert training_loss(unet, **batch, min_snr_gamma=5.0).item() == pytest.approx(weighted.mean().item())
    ends = torch.tensor([0.0, 1.0])
    expected = {"epsilon": [1.0, 0.0], "v_prediction": [0.0, 0.0], "sample": [0.0, 5.0]}
    for prediction_type, weights in expected.items():
        assert min_snr_weights(ends, 5.0, prediction_type).tolist() == weights
