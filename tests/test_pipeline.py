"""CinemoPipeline against the official numbers, and what it promises beyond them."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cinemo import CinemoPipeline
from cinemo.checkpoint import ModelCard
from cinemo.latents import decode_latents, encode_frames, encode_pixels, encode_prompts
from tests.loras import write_adapter


@pytest.fixture(scope="module")
def pipe(checkpoint: Path) -> CinemoPipeline:
    return CinemoPipeline.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def photo(golden: Any) -> np.ndarray:
    return golden("e2e")["image_uint8"]


FAST = {"num_frames": 4, "num_inference_steps": 2, "height": 64, "width": 96}


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


def within_one_level(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.abs(a.astype(int) - b.astype(int)) <= 1).mean())


def settings(case: dict[str, Any], start: str) -> dict[str, Any]:
    return {
        "prompt": str(case["prompt"]),
        "negative_prompt": str(case["negative_prompt"]),
        "guidance_scale": float(case["guidance_scale"]),
        "num_inference_steps": int(case["num_inference_steps"]),
        "raw_motion_id": int(case["motion_bucket_id"]),
        "image_latents": torch.from_numpy(case["base_content"]),
        "latents": torch.from_numpy(case[start]),
    }


def test_token_ids_and_text_features_are_the_official_ones(golden: Any, pipe: CinemoPipeline) -> None:
    case = golden("text")
    prompts = [str(prompt) for prompt in case["prompts"]]
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    assert np.array_equal(ids, case["input_ids"])
    features = encode_prompts(pipe.tokenizer, pipe.text_encoder, prompts)
    assert np.abs(features.numpy() - case["last_hidden_state"]).max() <= 1e-5


@pytest.mark.parametrize(("vae", "video"), [("temporal", "video_temporal_uint8"), ("frame", "video_kl_uint8")])
def test_every_step_and_the_decoded_video_are_the_official_ones(
    golden: Any, checkpoint: Path, vae: str, video: str
) -> None:
    case = golden("sampling")
    steps: list[np.ndarray] = []
    timesteps: list[int] = []

    def watch(pipe: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        steps.append(state["latents"].numpy().copy())
        timesteps.append(int(timestep))
        return state

    pipe = CinemoPipeline.from_pretrained(checkpoint, vae=vae)
    frames = pipe(None, **settings(case, "init_latents"), callback_on_step_end=watch).frames
    assert timesteps == case["timesteps"].tolist()
    for got, expected in zip(steps, case["latents_steps"], strict=True):
        assert relative(got, expected) <= 1e-5
    assert within_one_level(frames, case[video]) >= 0.999


def test_the_whole_path_from_the_refined_noise_on_is_the_official_one(golden: Any, pipe: CinemoPipeline) -> None:
    case = golden("e2e")
    asked = settings(case, "init_latents")
    assert relative(pipe(None, **asked, output_type="latent").frames.numpy(), case["latents_final"]) <= 1e-5
    assert within_one_level(pipe(None, **asked).frames, case["video_uint8"]) >= 0.999


def test_the_image_is_encoded_to_the_official_posterior_s_mean(golden: Any, pipe: CinemoPipeline) -> None:
    case = golden("preprocess")
    latents = encode_pixels(pipe.vae, torch.from_numpy(case["pixels"]))
    expected = case["posterior_mean_temporal"] * float(case["scaling_factor"])
    assert np.abs(latents.numpy() - expected).max() <= 1e-5


def test_clips_are_encoded_frame_by_frame(pipe: CinemoPipeline) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 96, 3), np.uint8)
    latents = encode_frames(pipe.vae, frames)
    assert latents.shape == (2, 4, 3, 8, 12)
    assert torch.allclose(encode_frames(pipe.vae, frames[1:, 2:])[0, :, 0], latents[1, :, 2], atol=1e-5)


def test_a_sample_is_the_same_alone_and_in_a_batch(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    prompts, seeds, buckets = ["a shark", "swimming", "a corgi"], [0, 7, 7], [3, 19, 0]
    together = pipe([photo] * 3, prompts, seed=seeds, motion_bucket=buckets, output_type="latent", **FAST).frames
    for row, (prompt, seed, bucket) in enumerate(zip(prompts, seeds, buckets, strict=True)):
        alone = pipe(photo, prompt, seed=seed, motion_bucket=bucket, output_type="latent", **FAST).frames
        assert relative(alone[0].numpy(), together[row].numpy()) < 1e-4


def test_seed_zero_is_a_seed_and_global_random_state_plays_no_part(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    torch.manual_seed(1)
    first = pipe(photo, "x", seed=0, **FAST).frames
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = pipe(photo, "x", seed=0, **FAST).frames
    assert np.array_equal(first, again)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not np.array_equal(first, pipe(photo, "x", seed=1, **FAST).frames)


def test_threads_with_different_steps_do_not_disturb_each_other(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    expected = {n: pipe(photo, "x", **{**FAST, "num_inference_steps": n}).frames for n in (2, 5)}
    results: dict[int, np.ndarray] = {}

    def work(n: int) -> None:
        results[n] = pipe(photo, "x", **{**FAST, "num_inference_steps": n}).frames

    threads = [threading.Thread(target=work, args=(n,)) for n in (2, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(within_one_level(results[n], expected[n]) == 1.0 for n in (2, 5))


def test_guidance_of_one_or_less_never_looks_at_the_negative_prompt(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    wish = {"guidance_scale": 1.0, **FAST}
    assert np.array_equal(pipe(photo, "x", "bad", **wish).frames, pipe(photo, "x", "worse", **wish).frames)


def test_dctinit_changes_the_start_and_can_be_switched_off(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    with_it = pipe(photo, "x", output_type="latent", **FAST).frames
    without = pipe(photo, "x", dct_init=False, output_type="latent", **FAST).frames
    nothing_taken = pipe(photo, "x", dct_cutoff=0.0, output_type="latent", **FAST).frames
    assert relative(with_it.numpy(), without.numpy()) > 1e-3
    assert relative(nothing_taken.numpy(), without.numpy()) < 1e-4


def test_a_callback_can_replace_the_latents(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    def still(pipe: Any, step: int, timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(state["latents"])}

    frames = pipe(photo, "x", output_type="latent", callback_on_step_end=still, **FAST).frames
    assert not frames.any()


def test_every_output_type(pipe: CinemoPipeline, photo: np.ndarray) -> None:
    array = pipe(photo, "x", **FAST).frames
    pictures = pipe(photo, "x", output_type="pil", **FAST).frames
    assert array.shape == (1, 4, 64, 96, 3)
    assert np.array_equal(np.asarray(pictures[0][3]), array[0, 3])


def test_a_long_prompt_is_used_and_what_was_cut_is_named(
    pipe: CinemoPipeline, photo: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    pipe(photo, "swim " * 90 + "zebra", **FAST)
    assert "cut" in caplog.text
    assert "zebra" in caplog.text.replace(" ", "")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"motion_bucket": 25}, "motion_bucket 25 is outside 0..19"),
        ({"height": 60}, "60 x 96 does not fit; both must be multiples of 8"),
        ({"height": 8, "width": 8}, "8 x 8 does not fit"),
        ({"num_frames": 1}, "num_frames 1"),
        ({"num_inference_steps": 0}, "num_inference_steps 0"),
        ({"dct_cutoff": 2.0}, "dct_cutoff 2.0"),
        ({"dct_timestep": 1000}, "dct_timestep 1000"),
        ({"output_type": "gif"}, "output_type 'gif'"),
        ({"decode_chunk_size": 0}, "decode_chunk_size 0"),
        ({"seed": [1, 2], "prompt": ["a", "b", "c"]}, "lists of lengths"),
        ({"image": None}, "image is missing"),
    ],
)
def test_bad_settings_are_named(pipe: CinemoPipeline, photo: np.ndarray, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pipe(**{"image": photo, "prompt": "x", **FAST, **asked})


def test_a_model_with_trained_sizes_takes_no_other(checkpoint: Path, photo: np.ndarray) -> None:
    pipe = CinemoPipeline.from_pretrained(checkpoint)
    pipe.card = ModelCard(sizes=[(64, 96)], lengths=[4])
    assert pipe(photo, "x", num_frames=4, num_inference_steps=1).frames.shape == (1, 4, 64, 96, 3)
    with pytest.raises(ValueError, match="96 x 64 was not trained by this model; it takes 64 x 96"):
        pipe(photo, "x", **{**FAST, "height": 96, "width": 64})
    with pytest.raises(ValueError, match="num_frames 16 was not trained by this model; it takes 4"):
        pipe(photo, "x", **{**FAST, "num_frames": 16})


@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_what_is_no_number_becomes_an_error_and_not_a_black_video(
    pipe: CinemoPipeline, photo: np.ndarray, output_type: str
) -> None:
    noise = torch.randn(2, 4, 3, 8, 12)
    noise[1, 0, 0, 0, 0] = torch.nan
    given = {"image": photo, "prompt": "", "height": 64, "width": 96, "num_inference_steps": 1}
    with pytest.raises(FloatingPointError, match="sample 1 of 2 came out as NaN or infinity"):
        pipe(**given, latents=noise, output_type=output_type)


def test_a_vae_that_overflows_is_an_error_and_not_a_black_video(checkpoint: Path) -> None:
    vae = CinemoPipeline.from_pretrained(checkpoint).vae
    with pytest.raises(FloatingPointError, match=r"the VAE overflows in torch.float32; use float32 or bfloat16"):
        decode_latents(vae, torch.full((1, 4, 2, 8, 8), torch.inf))


def test_adapters_act_alone_together_weighted_and_fused_and_leave_nothing_behind(
    checkpoint: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    first, second = (str(write_adapter(tmp_path / str(seed), checkpoint, seed)) for seed in (1, 2))
    pipe = CinemoPipeline.from_pretrained(checkpoint)

    def sampled() -> torch.Tensor:
        return pipe(photo, "x", output_type="latent", **FAST).frames

    plain = sampled()
    pipe.load_lora_weights(first)
    pipe.load_lora_weights(second, "second")
    assert pipe.get_list_adapters() == {"unet": ["default_0", "second"]}
    assert pipe.get_active_adapters() == ["second"]  # as in diffusers, the one that was loaded last
    alone = {}
    for name in ("default_0", "second"):
        pipe.set_adapters(name)
        alone[name] = sampled()
    pipe.set_adapters(["default_0", "second"], [0.5, 2.0])
    both = sampled()
    results = [plain, *alone.values(), both]
    for number, one in enumerate(results):
        assert all(relative(one.numpy(), other.numpy()) > 1e-3 for other in results[:number])
    pipe.set_adapters(["default_0", "second"], [0.0, 1.0])
    assert torch.equal(sampled(), alone["second"])
    pipe.set_adapters(["second", "default_0"], [2.0, 0.5])
    assert relative(sampled().numpy(), both.numpy()) < 1e-4
    pipe.disable_lora()
    assert torch.equal(sampled(), plain)
    pipe.enable_lora()
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unfuse_lora()
    pipe.fuse_lora()  # with the weights that set_adapters gave, not with half of them
    assert relative(sampled().numpy(), both.numpy()) < 1e-4
    with pytest.raises(ValueError, match=r"adapters second, default_0 are fused; call unfuse_lora\(\) first"):
        pipe.set_adapters("second")
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert torch.equal(sampled(), plain)  # subtraction would leave an error of rounding
    pipe.delete_adapters("second")
    pipe.set_adapters("default_0")
    assert torch.equal(sampled(), alone["default_0"])
    pipe.unload_lora_weights()
    assert torch.equal(sampled(), plain)
    pipe.load_adapters([(first, 1.0)])
    assert torch.equal(sampled(), alone["default_0"])
    pipe.fuse_lora()
    pipe.unload_lora_weights()  # as in diffusers, what is fused stays
    assert relative(sampled().numpy(), alone["default_0"].numpy()) < 1e-4


def test_bad_use_of_adapters_is_named(checkpoint: Path, tmp_path: Path) -> None:
    pipe = CinemoPipeline.from_pretrained(checkpoint)
    own = write_adapter(tmp_path / "own", checkpoint)
    other = write_adapter(tmp_path / "other", checkpoint, unet_fingerprint="f" * 64)
    with pytest.raises(ValueError, match=r"was trained on .* with the U-Net ffffffffffff, but .* has the"):
        pipe.load_lora_weights(other)
    with pytest.raises(ValueError, match="call load_lora_weights or set_adapters first"):
        pipe.fuse_lora()
    pipe.load_lora_weights(own, "own")
    for call, words in (
        (lambda: pipe.load_lora_weights(own, "own"), "adapter_name own is in use; give another"),
        (lambda: pipe.load_lora_weights(own, "v1.5"), "adapter_name 'v1.5' cannot name a part of a model"),
        (lambda: pipe.set_adapters("else"), "adapter_names has else, which is not loaded; use own"),
        (lambda: pipe.delete_adapters(["else"]), "adapter_names has else, which is not loaded; use own"),
        (lambda: pipe.set_adapters(["own"], [1.0, 2.0]), "adapter_weights has 2 values for 1 adapters"),
        (lambda: pipe.set_adapters("own", float("nan")), "adapter_weights has nan for own; give a number"),
        (lambda: pipe.fuse_lora(["vae"]), "cannot be fused; only the U-Net has adapters"),
        (lambda: pipe.unfuse_lora(), "no adapter is fused"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert pipe.get_active_adapters() == ["own"]
