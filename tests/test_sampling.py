"""Samplers and guidance: that each arrives where the others do, and what the settings mean."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cinemo import CinemoPipeline
from cinemo.checkpoint import load_scheduler
from cinemo.samplers import SCHEDULERS, SPEEDS
from cinemo.sampling import Guidance, denoise, make_scheduler, rescaled
from cinemo.synthetic.images import photo

SMALL = {"num_frames": 4, "height": 64, "width": 96, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CinemoPipeline:
    return CinemoPipeline.from_pretrained(checkpoint)


class GaussianUNet:
    """The perfect network for residuals that are Gaussian with this deviation: every sampler must then scale alike."""

    deviation = 0.5

    def __init__(self, scheduler: Any) -> None:
        self.alphas = scheduler.alphas_cumprod
        self.rows: list[int] = []

    def __call__(self, sample: Tensor, timestep: int, *conditions: Any) -> Any:
        alpha = self.alphas[timestep]
        self.rows.append(len(sample))
        noise = (1 - alpha).sqrt() * sample / (alpha * self.deviation**2 + 1 - alpha)
        return type("Output", (), {"sample": noise})


def run(unet: Any, scheduler: Any, noise: Tensor, guidance: Guidance) -> Tensor:
    batch = len(noise)
    text = torch.zeros(2 * batch if guidance.wanted else batch, 1, 1)
    return denoise(unet, scheduler, noise, noise[:, :, :1], text, [0.0] * batch, guidance, lambda i, t, x, denoised: x)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_arrives_at_the_data_that_the_network_knows(name: str, checkpoint: Path) -> None:
    own = load_scheduler(checkpoint)
    scheduler = make_scheduler(own, name, 50)
    noise = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = run(GaussianUNet(own), scheduler, noise, Guidance([1.0]))
    # The flow of a Gaussian only scales the noise: by this deviation, from one where every step was exact.
    ratio = (found / noise).flatten()
    assert float(ratio.std() / ratio.mean()) < 1e-4
    assert float(ratio.mean()) == pytest.approx(GaussianUNet.deviation, rel=0.1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_gives_a_sample_that_its_batch_does_not_change(name: str, pipe: CinemoPipeline) -> None:
    image = photo("coffee.png")
    wish = {"num_inference_steps": 3, "scheduler": name, **SMALL}
    together = pipe([image] * 2, "x", seed=[3, 4], **wish).frames
    alone = pipe(image, "x", seed=4, **wish).frames
    assert torch.allclose(together[1], alone[0], atol=1e-3 * float(alone.std()))


def test_the_model_s_own_schedule_is_kept_by_every_sampler(checkpoint: Path) -> None:
    own = load_scheduler(checkpoint)
    for name in SCHEDULERS:
        scheduler = make_scheduler(own, name, 10)
        assert torch.equal(scheduler.alphas_cumprod, own.alphas_cumprod), name
        assert scheduler.config.prediction_type == own.config.prediction_type


def test_guidance_acts_in_its_interval_and_costs_nothing_outside(checkpoint: Path) -> None:
    own = load_scheduler(checkpoint)
    noise = torch.randn(2, 4, 3, 8, 8)
    unet = GaussianUNet(own)
    run(unet, make_scheduler(own, None, 10), noise, Guidance([7.5, 1.0], interval=(0.2, 0.6)))
    assert unet.rows == [2, 2, 4, 4, 4, 4, 2, 2, 2, 2]
    unet.rows.clear()
    run(unet, make_scheduler(own, None, 10), noise, Guidance([7.5, 1.0], interval=(0.5, 0.5)))
    assert set(unet.rows) == {2}


def test_shared_deep_features_cost_less_and_stay_a_sample_s_own(
    pipe: CinemoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []
    forward = type(pipe.unet).forward

    def watched(*arguments: Any, **options: Any) -> Any:
        features = options.get("cached_features")
        given.append(None if features is None else len(features))
        return forward(*arguments, **options)

    monkeypatch.setattr(type(pipe.unet), "forward", watched)
    wish = {"num_inference_steps": 8, "cache_interval": 3, "guidance_interval": (0.5, 0.8), **SMALL}
    images = [photo("coffee.png")] * 2
    together = pipe(images, "x", seed=[3, 4], guidance_scale=[7.5, 1.0], **wish).frames
    # Anew at steps 0, 3 and 6, and at 4, where guidance begins and needs the other prompt's as well.
    assert given == [None, 2, 2, None, None, 4, None, 2]
    alone = pipe(images[0], "x", seed=4, guidance_scale=1.0, **wish).frames
    assert torch.allclose(together[1], alone[0], atol=1e-3 * float(alone.std()))
    exact = pipe(images[0], "x", seed=4, guidance_scale=1.0, **wish | {"cache_interval": 1}).frames
    assert 0 < float((alone - exact).std() / exact.std()) < 0.5


@pytest.mark.parametrize("speed", SPEEDS)
def test_every_speed_is_settings_that_the_pipeline_takes(speed: str, pipe: CinemoPipeline) -> None:
    found = pipe(photo("coffee.png"), "x", **SMALL | SPEEDS[speed] | {"num_inference_steps": 2}).frames
    assert found.isfinite().all()


def test_rescaled_guidance_is_that_of_diffusers() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    guided, positive = 3 * torch.randn(2, 4, 3, 8, 8) + 1, torch.randn(2, 4, 3, 8, 8)
    for share in (0.3, 1.0):
        torch.testing.assert_close(rescaled(guided, positive, share), rescale_noise_cfg(guided, positive, share))
    assert rescaled(guided, positive, 0.0) is guided


def test_rescaling_changes_strong_guidance_alone(pipe: CinemoPipeline) -> None:
    def frames(scale: float, share: float) -> Tensor:
        wish = {"num_inference_steps": 2, "guidance_scale": scale, "guidance_rescale": share, **SMALL}
        return pipe(photo("coffee.png"), "a shark", "x", **wish).frames

    assert torch.equal(frames(1.0, 0.7), frames(1.0, 0.0))
    assert frames(20.0, 1.0).std() < frames(20.0, 0.0).std()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"scheduler": "magic"}, "scheduler 'magic' is unknown; use ddim, dpmsolver"),
        ({"guidance_rescale": 2.0}, "guidance_rescale 2.0 is outside 0..1"),
        ({"guidance_interval": (0.7, 0.2)}, "guidance_interval 0.7..0.2 is not within 0..1"),
        ({"dct_transform": "dst"}, "transform 'dst' is unknown"),
    ],
)
def test_bad_settings_are_named(pipe: CinemoPipeline, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pipe(photo("coffee.png"), "x", num_inference_steps=1, **SMALL, **asked)
