"""What happens to one row before the model sees it: its image is read, identified, decoded and fitted.

Plain functions from row to row (records.STATE as dictionaries). Knows images and ids. Knows nothing of Ray, models or
other rows. A fault of one image is a reject row, never an exception; whatever touches a file of a stranger goes through
`run`, which may be a plain call or one into a process of its own.
"""

import functools
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cinemo.image import ImageError, fit_pixels, read_image
from cinemo.memory import keep_freed_memory
from pipelines import isolation
from pipelines.animation.records import Reason, animation_id, reject
from pipelines.isolation import Run
from pipelines.sources import images

Row = dict[str, Any]


@functools.cache
def in_sandbox(timeout: float) -> Run:
    """A `run` with one child process a process: what hangs or crashes there is an ImageError here.

    timeout: seconds for one call.
    """
    return isolation.guard(warm_up, timeout, "--image-timeout", ImageError)


def warm_up() -> None:
    """Load what preparing an image needs: seconds on a new node, and not the first image's fault."""
    keep_freed_memory()
    fit_pixels(np.zeros((8, 8, 3), np.uint8), 8, 8)


def load(uri: str, height: int, width: int) -> tuple[str, np.ndarray, float]:
    """The digest of an image's bytes (sha256, hex); its pixels, fitted: float32 (3, height, width) in [-1, 1]; seconds.

    Raises ImageError.
    """
    began = time.perf_counter()
    data = images.read(uri)
    try:
        image = read_image(data)
    except ImageError as error:
        raise ImageError(error.reason, str(error).replace("image", f"image {uri}", 1)) from None
    pixels = fit_pixels(image, height, width)[0].contiguous().numpy()
    return hashlib.sha256(data).hexdigest(), pixels, time.perf_counter() - began


def prepare(task: Mapping[str, Any], made_with: Mapping[str, str], run: Run) -> Row:
    """A row of TASK -> a row with its id, pixels, and the seconds that they took; or its reject row."""
    row = dict(task)
    if row["reason"]:
        return reject(row, "catalog", Reason(row["reason"]), row["message"])
    request = json.loads(row["request"])
    try:
        digest, pixels, seconds = run(load, row["image"], request["height"], request["width"])
    except ImageError as error:
        return reject(row, "image", Reason(error.reason), str(error))
    except Exception as error:
        return reject(row, "image", Reason.INTERNAL, f"{type(error).__name__}: {error}")
    facts = {"timings": {"prepare_seconds": round(seconds, 4)}}
    return {
        **row,
        "id": animation_id(digest, request, made_with),
        "image_digest": digest,
        "pixels": pixels.tobytes(),
        "facts": json.dumps(facts),
    }
