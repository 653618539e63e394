"""PSNR by number of steps: each sampler against DDIM with many steps from the same noise, with builtin:tiny.

    python benchmarks/samplers.py

PSNR in dB of frames 1 to 15 (mean of three photos, and the lowest), with the guidance of the card. Prints a table;
exits 1 when DPM-Solver++ with 10 steps is not closer than DDIM with 10.
"""

import sys

import numpy as np
from skimage.metrics import peak_signal_noise_ratio

from cinemo import CinemoPipeline
from cinemo.samplers import SCHEDULERS
from cinemo.synthetic.images import HELD_OUT_PHOTOS, photo

REFERENCE = 100  # steps of DDIM
STEPS = (5, 10, 20)
PROMPTS = ("the camera pans left", "the camera zooms in", "the camera pans up")


def main() -> int:
    pipe = CinemoPipeline.from_pretrained("builtin:tiny")
    pipe.set_progress_bar_config(disable=True)

    def frames(name: str, prompt: str, scheduler: str, steps: int) -> np.ndarray:
        settings = {"scheduler": scheduler, "num_inference_steps": steps, "guidance_scale": pipe.card.guidance}
        return pipe(photo(name), prompt, **settings).frames[0, 1:]

    pairs = list(zip(HELD_OUT_PHOTOS, PROMPTS, strict=True))
    expected = [frames(*pair, "ddim", REFERENCE) for pair in pairs]
    print(f"| sampler | {' | '.join(f'{steps} steps' for steps in STEPS)} |\n| --- |{' ---: |' * len(STEPS)}")
    means: dict[tuple[str, int], float] = {}
    for name in SCHEDULERS:
        cells = []
        for steps in STEPS:
            sampled = [frames(*pair, name, steps) for pair in pairs]
            ratios = [peak_signal_noise_ratio(a, b) for a, b in zip(expected, sampled, strict=True)]
            means[name, steps] = float(np.mean(ratios))
            cells.append(f"{np.mean(ratios):.1f} ({min(ratios):.1f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0 if means["dpmsolver++", 10] > means["ddim", 10] else 1


if __name__ == "__main__":
    sys.exit(main())
