"""Settings of an animation: what a model says fills in what is left open, and what it cannot take is named."""

import dataclasses

import pytest
from pydantic import ValidationError

from cinemo import CinemoPipeline
from cinemo.sidecar import Request
from pipelines.animate import request
from pipelines.core import models


@pytest.fixture(scope="module")
def tiny() -> models.Facts:
    return models.look_up("builtin:tiny")


def test_the_models_card_fills_in_what_is_left_open(tiny: models.Facts) -> None:
    full = request.complete(request.Settings(), "x", tiny)
    assert (full["height"], full["width"], full["num_frames"]) == (320, 512, 16)
    assert (full["num_inference_steps"], full["guidance_scale"]) == (tiny.card.steps, tiny.card.guidance)
    assert full["motion_bucket"] == tiny.card.bucket
    assert (tiny.card.steps, tiny.card.guidance, tiny.card.bucket) != (50, 7.5, 10)  # taken where a card says nothing
    assert (full["seed"], full["fps"], full["prompt"]) == (0, 8.0, "x")


def test_what_is_asked_for_stays(tiny: models.Facts) -> None:
    asked = {"seed": 7, "num_inference_steps": 3, "guidance_scale": 0.0, "motion_bucket": 0, "negative_prompt": "no"}
    full = request.complete(request.Settings(**asked), "", tiny)
    assert {name: full[name] for name in asked} == asked


def test_every_setting_but_fps_is_an_argument_of_the_pipeline(tiny: models.Facts) -> None:
    import inspect

    known = inspect.signature(CinemoPipeline.__call__).parameters
    full = request.complete(request.Settings(), "", tiny)
    assert set(full) - {"fps", "sizes"} <= set(known)
    assert set(full) == {*Request.__required_keys__, "sizes"}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"size": "64x64"}, "size"),
        ({"num_frames": 8}, "num_frames"),
    ],
)
def test_what_the_model_cannot_take_is_named(tiny: models.Facts, asked: dict[str, str], field: str) -> None:
    with pytest.raises(request.SettingError, match="not trained by this model") as caught:
        request.complete(request.Settings.model_validate(asked), "", tiny)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "wrong",
    [{"motion_bucket": 20}, {"motion_bucket": -1}, {"seed": -1}, {"seed": 1.5}, {"size": "x"}, {"guidance_scale": 51},
     {"num_inference_steps": 0}, {"fps": float("nan")}, {"unknown": 1}, {"negative_prompt": "a\0"},
     {"dct_cutoff": float("nan")}],
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        request.Settings.model_validate(wrong)


def test_one_shape_is_what_one_batch_can_hold(tiny: models.Facts) -> None:
    def shape(**asked: object) -> str:
        return request.shape_of(request.complete(request.Settings.model_validate(asked), "", tiny))

    assert shape(seed=1, motion_bucket=3, guidance_scale=2) == shape(seed=2, motion_bucket=9, guidance_scale=5)
    assert len({shape(), shape(num_inference_steps=3), shape(guidance_scale=3), shape(dct_init=False)}) == 4
    plain = request.complete(request.Settings(), "", tiny)
    assert request.shape_of(plain) != request.shape_of(plain, edited=True)


def test_an_fps_that_browsers_do_not_show_in_a_file_is_refused(tiny: models.Facts) -> None:
    assert request.complete(request.Settings(fps=60), "", tiny, ".mp4")["fps"] == 60
    with pytest.raises(request.SettingError, match=r"fps 60 is outside 1..50: browsers would play") as caught:
        request.complete(request.Settings(fps=60), "", tiny, ".gif")
    assert caught.value.field == "fps"


def test_a_speed_is_steps_sampler_and_shape_of_its_own(tiny: models.Facts) -> None:
    fast = request.complete(request.Settings(speed="fast"), "", tiny)
    assert (fast["speed"], fast["num_inference_steps"], fast["reuse"]) == ("fast", 8, 2)
    plain = request.complete(request.Settings(num_inference_steps=8), "", tiny)
    assert set(fast) - set(plain) == {"speed", "scheduler", "guidance_interval", "reuse"}  # plain rows keep their ids
    assert request.shape_of(fast) != request.shape_of(plain)
    with pytest.raises(request.SettingError, match="speed fast sets num_inference_steps itself") as caught:
        request.complete(request.Settings(speed="fast", num_inference_steps=3), "", tiny)
    assert caught.value.field == "speed"


def test_a_size_that_follows_from_the_image_is_chosen_once_the_image_is_known(tiny: models.Facts) -> None:
    def made(tall: int, wide: int, **asked: object) -> dict[str, object]:
        return request.fitted(request.complete(request.Settings.model_validate(asked), "", tiny), tall, wide)

    plain = made(900, 600, size="512x320")
    assert plain == request.complete(request.Settings(size="512x320"), "", tiny)  # ids of before, without a word of fit
    assert request.cut_of(plain, 900, 600) == pytest.approx(1 - 600 * 320 / 512 / 900, abs=1e-4)
    portrait = made(900, 600)
    assert portrait == made(900, 600, size="auto") == made(900, 600, fit="auto")
    assert {**portrait, "height": 320, "width": 512} == plain
    assert (portrait["height"], portrait["width"]) == (512, 320)
    assert (made(80, 81)["height"], made(80, 81)["width"]) == (416, 416)
    assert made(600, 900) == plain
    assert made(900, 600, fit="auto", size="512x320") == plain
    padded = made(900, 600, fit="pad")
    assert padded == {**portrait, "fit": "pad"}
    assert request.cut_of(padded, 900, 600) == 0
    assert request.shape_of(padded) != request.shape_of(portrait)
    assert made(900, 600, fit="pad", size="512x320") == {**plain, "fit": "pad"}
    one = dataclasses.replace(tiny, card=dataclasses.replace(tiny.card, sizes=[(320, 512)]))
    assert request.complete(request.Settings(), "", one) == plain  # the key of a catalog's row stays, too
