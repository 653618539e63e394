"""A hook of schemathesis (test_fuzz.py): most requests carry real files, or no other field would be looked at."""

import base64
import itertools
import os
from typing import Any

import numpy as np
import schemathesis

from pipelines.animate import videos
from tests.pipelines.serving.in_process import png

MADE = "FUZZ_VIDEO"  # environment variable with the id of a completed video
PHOTO = png()
VIDEO = videos.video(np.stack([np.roll(np.indices((64, 96)).sum(0), k, 1) for k in range(6)])[..., None].repeat(3, 3)
                     .astype(np.uint8), 8)  # fmt: skip
FILES = {
    "input_reference": ("image/png", PHOTO),
    "video": ("video/mp4", VIDEO),
    "reference_video": ("video/mp4", VIDEO),
}
numbers = itertools.count()


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Put files, and the id of a completed video, in the place of what was generated, but in every fourth request."""
    number = next(numbers)
    if not number % 4:
        return
    if case.path.endswith("/remix"):
        case.path_parameters = {"video_id": os.environ[MADE]}
    if not isinstance(case.body, dict):
        return
    if case.path.startswith("/v1/videos/") and number % 2:  # of many random fields, one is always wrong
        case.body = {name: value for name, value in case.body.items() if name in ("prompt", *FILES)}
    as_json = case.media_type == "application/json"
    for name, (kind, data) in FILES.items():
        if isinstance(case.body.get(name), str | bytes):
            url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
            case.body = {**case.body, name: url if as_json else data}
