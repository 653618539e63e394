"""Rows as they come out of the dataflow, without a dataflow."""

import json
from typing import Any

import numpy as np

from pipelines.animate.plan import Plan
from pipelines.core import hashing

REQUEST = {
    "prompt": "x", "negative_prompt": "", "width": 96, "height": 72, "num_frames": 4, "fps": 8.0, "seed": 0,
    "num_inference_steps": 2, "guidance_scale": 1.0, "motion_bucket": 3, "dct_init": True, "dct_cutoff": 0.23,
    "dct_timestep": 975,
}  # fmt: skip


def state(
    number: int, name: str | None = None, score: float = 0.9, cut: float | None = 0.0, **changes: Any
) -> dict[str, Any]:
    """The row of a finished video. cut: share of the image; None in sidecars of before. changes: of the request."""
    request = {**REQUEST, **changes}
    facts = {
        "request": request,
        "timings": {"prepare_seconds": 0.0, "sample_seconds": 1.0, "decode_seconds": 0.5},
        "cut_away": cut,
        "motion_score": score,
        "motion_bucket": int((1 - score) * 20),
        "psnr_first_frame": 30.0,
        "model_fingerprint": "f" * 64,
    }
    return {
        **dict.fromkeys(("reason", "message", "stage", "twin", "made")),
        "row": number,
        "key": f"key{number}",
        "id": name or f"id{number}",
        "image": f"/photos/{number}.png",
        "image_digest": "d",
        "source_video": None,
        "request": json.dumps(request),
        "facts": json.dumps(facts),
    }


def plan_of(numbers: dict[str, int]) -> Plan:
    """A catalog of these keys, each with the number of its row."""
    keys = hashing.hash64(numbers)
    order = np.argsort(keys)
    return Plan({}, keys[order], np.array(list(numbers.values()), np.int64)[order])
