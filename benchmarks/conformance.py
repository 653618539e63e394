"""Differences between this code's numbers and the official code's: a table.

    python benchmarks/conformance.py

Reads tests/golden (made by the official inference code) and prints each difference and its bound. Exits 1 when a bound
is exceeded. Takes about ten seconds on two cores.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cinemo import CinemoPipeline
from cinemo.dctinit import dct_init
from cinemo.image import fit_pixels
from cinemo.latents import encode_prompts

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


def load(name: str) -> Any:
    return np.load(GOLDEN / f"{name}.npz")


def largest(a: Any, b: Any) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def relative_rms(a: Any, b: Any) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(np.square(b))))


def unet_row(name: str, dtype: torch.dtype, expected: str) -> float:
    case = load(name)
    unet = CinemoPipeline.from_pretrained(GOLDEN / "checkpoint", dtype).unet
    inputs = [torch.from_numpy(case[key]).to(dtype) for key in ("sample", "encoder_hidden_states", "base_content")]
    with torch.no_grad():
        out = unet(inputs[0], torch.from_numpy(case["timesteps"]), *inputs[1:], torch.from_numpy(case["motion_ids"]))
    return largest(out.sample, case[expected])


def dct_row(timestep: int, expected: str) -> float:
    case = load("dctinit")
    alpha_bar = case["alphas_cumprod"].astype(np.float64)[timestep]
    noise, image = torch.from_numpy(case["noise"]), torch.from_numpy(case["base_content"])
    return largest(dct_init(noise, image, alpha_bar, float(case["percentage"])), case[expected])


def sampling_rows() -> list[tuple[str, float, float]]:
    """Largest difference of any step, then bytes of the decoded videos that are off by more than one level."""
    rows: list[tuple[str, float, float]] = []
    for name, vae, video in (
        ("sampling", "temporal", "video_temporal_uint8"),
        ("sampling", "frame", "video_kl_uint8"),
        ("e2e", "temporal", "video_uint8"),
    ):
        case, steps = load(name), []

        def watch(
            pipe: Any, step: int, timestep: Any, state: dict[str, Any], steps: list[Any] = steps
        ) -> dict[str, Any]:
            steps.append(state["latents"].numpy().copy())
            return state

        frames = CinemoPipeline.from_pretrained(GOLDEN / "checkpoint", vae=vae)(
            None,
            str(case["prompt"]),
            raw_motion_id=int(case["motion_bucket_id"]),
            num_inference_steps=int(case["num_inference_steps"]),
            guidance_scale=float(case["guidance_scale"]),
            image_latents=torch.from_numpy(case["base_content"]),
            latents=torch.from_numpy(case["init_latents"]),
            callback_on_step_end=watch,
        ).frames
        if name == "sampling":
            worst = max(relative_rms(a, b) for a, b in zip(steps, case["latents_steps"], strict=True))
            what = "worst step, relative RMS"
        else:
            worst, what = relative_rms(steps[-1], case["latents_final"]), "last step, relative RMS"
        off = float((np.abs(frames.astype(int) - case[video]) > 1).mean())
        rows += [(f"{name}, {vae} VAE: {what}", worst, 1e-5), (f"{name}, {vae} VAE: bytes off by > 1", off, 1e-3)]
    return rows


def main() -> int:
    pipe = CinemoPipeline.from_pretrained(GOLDEN / "checkpoint")
    text, photo = load("text"), load("preprocess")
    prompts = [str(prompt) for prompt in text["prompts"]]
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True).input_ids
    rows = [
        ("U-Net case a, float32, max abs", unet_row("unet_case_a", torch.float32, "output"), 2e-5),
        ("U-Net case b, float32, max abs", unet_row("unet_case_b", torch.float32, "output"), 2e-5),
        ("U-Net case a, float64, max abs", unet_row("unet_case_a", torch.float64, "output_f64"), 1e-6),
        ("U-Net case b, float64, max abs", unet_row("unet_case_b", torch.float64, "output_f64"), 1e-6),
        ("DCTInit at timestep 975, max abs", dct_row(975, "mixed"), 1e-10),
        ("DCTInit at timestep 500, max abs", dct_row(500, "mixed_mid"), 1e-10),
        ("token ids that differ", float((np.asarray(ids) != text["input_ids"]).sum()), 0.0),
        ("text features, max abs", largest(encode_prompts(pipe.tokenizer, pipe.text_encoder, prompts),
                                           text["last_hidden_state"]), 1e-5),
        ("photo preparation, max abs", largest(fit_pixels(photo["image_uint8"], *map(int, photo["target_hw"])),
                                               photo["pixels"]), 1e-5),
        *sampling_rows(),
    ]  # fmt: skip
    print("| against the official code | measured | bound |\n| --- | ---: | ---: |")
    for name, value, bound in rows:
        print(f"| {name} | {value:.1e} | {bound:.0e} |")
    return int(any(value > bound for _, value, bound in rows))


if __name__ == "__main__":
    sys.exit(main())
