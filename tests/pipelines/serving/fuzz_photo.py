"""A hook of schemathesis (test_fuzz.py): most of its requests carry a photo, or no other field would be looked at."""

import base64
import itertools
from typing import Any

import schemathesis

from tests.pipelines.serving.in_process import png

PHOTO = png()
numbers = itertools.count()


@schemathesis.hook
def before_call(context: Any, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Put a photo in the place of what was generated for one, but in every fourth request."""
    fields = case.body
    if not isinstance(fields, dict) or not isinstance(fields.get("input_reference"), str | bytes):
        return
    if next(numbers) % 4:
        url = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
        case.body = {**fields, "input_reference": url if case.media_type == "application/json" else PHOTO}
