"""Fidelity of inversion: invert a video's motion, then sample with the same image, by number of steps.

    python benchmarks/inversion.py

On held-out synthetic clips with builtin:tiny, without guidance: PSNR in dB of frames 1 to 15 against the video encoded
and decoded by the VAE, the best possible result. Prints a table; exits 1 when 25 steps give under 34 dB.
"""

import sys

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from cinemo import CinemoPipeline
from cinemo.editing import edit_video
from cinemo.latents import decode_latents, encode_frames, to_pixels
from cinemo.motion import motion_bucket, motion_score
from cinemo.synthetic import make_clip

STEPS = (5, 10, 25)
SEEDS = (3, 4, 5)
BOUND_STEPS, BOUND = 25, 34.0


def main() -> int:
    pipe = CinemoPipeline.from_pretrained("builtin:tiny")
    pipe.set_progress_bar_config(disable=True)
    print("| steps | PSNR in dB, mean of 3 clips | lowest, highest |\n| ---: | ---: | ---: |")
    passed = True
    for steps in STEPS:
        ratios = []
        for seed in SEEDS:
            clip = make_clip(seed, pipe.card.sizes[0], kinds=("pan", "zoom"), held_out=True)
            latents, photo = encode_frames(pipe.vae, clip.frames[None]), to_pixels(clip.frames[:1])
            decoded = decode_latents(pipe.vae, latents, images=photo)[0]
            bucket = motion_bucket(motion_score(clip.frames))
            settings = {"motion_bucket": bucket, "num_inference_steps": steps}
            sampled = edit_video(pipe, clip.frames, clip.frames[0], clip.caption, **settings)
            ratios.append(peak_signal_noise_ratio(decoded[1:], sampled[1:]))
        print(f"| {steps} | {np.mean(ratios):.1f} | {min(ratios):.1f}, {max(ratios):.1f} |", flush=True)
        passed &= steps != BOUND_STEPS or bool(np.mean(ratios) >= BOUND)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
