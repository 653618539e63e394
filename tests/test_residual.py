"""Algorithm 1 and Eq. 3."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from cinemo.residual import motion_residuals, training_loss


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
