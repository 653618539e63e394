"""Translate fields of other servers and clients (OpenAI, vllm-omni, SGLang, LiteLLM) to those of this API.

docs/http-api.md has the table. `schema.VideoRequest` checks the result.
"""

import base64
import binascii
import difflib
import json
from typing import Any

from pipelines.serving.http.errors import ApiError
from pipelines.serving.schema import VideoRequest

IMAGE = "input_reference"
IMAGE_NAMES = (IMAGE, "image_reference", "image")
VIDEO = "video"  # to edit or to extend
REFERENCE = "reference_video"  # only its motion bucket is taken
OTHER_NAMES = {"output_format": "format", "video[id]": VIDEO}
MAY_BE_EMPTY = ("prompt", "negative_prompt", "lora")
MOST_FIELDS = 100  # of a request; each unknown one is compared with all known names, which is slow


def translate(fields: dict[str, Any], strict: bool) -> tuple[dict[str, Any], bytes, list[str]]:
    """Translate the fields of a body: (fields of VideoRequest and videos, bytes of the image, warnings).

    Videos are bytes, or text: the id of one of this service. Where there is a video, the image may be missing, as b"".
    An empty form field or a JSON null counts as not given. An unknown field is ignored with a warning, or
    refused, if `strict` is set or if it resembles the name of a field. Raises ApiError (422).
    """
    fields = merge_extra(fields)
    if len(fields) > MOST_FIELDS:
        raise ApiError(422, f"{len(fields):,} fields are given; at most {MOST_FIELDS} are taken")
    empty = [name for name, value in fields.items() if value is None or (value == "" and name not in MAY_BE_EMPTY)]
    fields = {name: value for name, value in fields.items() if name not in empty}
    for name, own in OTHER_NAMES.items():
        if name in fields and own in fields:
            raise ApiError(422, f"{own} is given twice, also as {name}", own)
        if name in fields:
            fields[own] = fields.pop(name)
    for name in (VIDEO, REFERENCE):
        if name in fields:
            fields[name] = video_or_id(fields[name], name)
    image = take_image(fields)
    if str(fields.pop("n", 1)) != "1":
        raise ApiError(422, "n: one request makes one video; send a request for each", "n")
    join_size(fields)
    unknown = [name for name in fields if name not in {*VideoRequest.model_fields, VIDEO, REFERENCE}]
    for name in unknown:
        if strict or (near := difflib.get_close_matches(name[:100], VideoRequest.model_fields, 1, 0.8)):
            hint = "" if strict else f"; is {near[0]} meant?"
            raise ApiError(422, f"{shown(name)}: is not known{hint}", shown(name))
        del fields[name]
    return fields, image, [f"{shown(name)}: is not known here, and was ignored" for name in unknown]


def shown(name: str) -> str:
    """A client's name of a field for messages: not long, and without halves of surrogate pairs, which is no UTF-8."""
    return name[:100].encode(errors="replace").decode()


def merge_extra(fields: dict[str, Any]) -> dict[str, Any]:
    """Move the members of `extra_params`, an object or its JSON text, to the top. Raises ApiError (422)."""
    extra = fields.get("extra_params")
    try:
        extra = json.loads(extra) if isinstance(extra, str) and extra else extra or {}
    except (ValueError, RecursionError):
        extra = None
    if not isinstance(extra, dict):
        raise ApiError(422, "extra_params: should be a JSON object", "extra_params")
    for name in extra.keys() & fields.keys():
        raise ApiError(422, f"{shown(name)} is given twice, by itself and in extra_params", shown(name))
    return {name: value for name, value in (fields | extra).items() if name != "extra_params"}


def join_size(fields: dict[str, Any]) -> None:
    """Replace width and height by size. Raises ApiError (422) for one without the other, or if size differs."""
    sides = {name: fields.pop(name) for name in ("width", "height") if name in fields}
    if not sides:
        return
    if len(sides) == 1:
        missing = "height" if "width" in sides else "width"
        raise ApiError(422, f"{missing} is required where {next(iter(sides))} is given; or give size", missing)
    size = f"{sides['width']}x{sides['height']}"
    if fields.setdefault("size", size) != size:
        given, other = shown(str(fields["size"])), shown(size)
        raise ApiError(422, f"size {given} differs from width and height, {other}; give one of the two", "size")


def is_image(name: str) -> bool:
    """Whether a field of this name has the image."""
    return name.removesuffix("[]") in IMAGE_NAMES


def too_many(images: int) -> ApiError:
    """Error for several images."""
    return ApiError(422, f"{IMAGE}: {images} images are given; a video is made from one", IMAGE)


def take_image(fields: dict[str, Any]) -> bytes:
    """Remove the image from the fields, whatever its name, and return its bytes. Raises ApiError (422)."""
    named = [fields.pop(name) for name in list(fields) if is_image(name)]
    values = [one for value in named for one in (value if isinstance(value, list) else [value])]
    if not values and VIDEO in fields:
        return b""
    if not values:
        raise ApiError(422, f"{IMAGE} is required: an image file, its data: URL, or its base64", IMAGE)
    if len(values) > 1:
        raise too_many(len(values))
    image = values[0] if isinstance(values[0], bytes) else decode(values[0])
    if not image:
        raise ApiError(422, f"{IMAGE} is empty (0 bytes); send a JPEG, PNG or WebP file", IMAGE)
    return image


def video_or_id(value: Any, name: str) -> bytes | str:
    """Return a video's bytes, or the id of one of this service: text, or {"id": ...}. Raises ApiError (422)."""
    value = value["id"] if isinstance(value, dict) and set(value) == {"id"} else value
    if name == VIDEO and isinstance(value, str) and value.startswith("video_"):
        return value
    video = value if isinstance(value, bytes) else decode(value, name)
    if not video:
        raise ApiError(422, f"{name} is empty (0 bytes); send an MP4, WebM, GIF or WebP file", name)
    return video


def decode(value: Any, name: str = IMAGE) -> bytes:
    """Decode base64, alone or in a `data:` URL, in OpenAI's objects or as text. name: of the field.

    Raises ApiError (422).
    """
    while isinstance(value, dict):
        named = [value[key] for key in ("image_url", "video_url", "url") if value.get(key) is not None]
        value = named[0] if len(named) == 1 else 0
    if not isinstance(value, str):
        raise ApiError(422, f'{name} should be a file, base64 or {{"image_url": "data:TYPE;base64,DATA"}}', name)
    head, is_url, data = value.partition(",") if value[:5].lower() == "data:" else ("", "", value)
    if head and not (is_url and head.lower().endswith(";base64")):
        raise ApiError(422, f"{name} should be data:TYPE;base64,DATA", name)
    if not head and "://" in value[:16]:
        raise ApiError(422, f"{name}: URLs are not fetched; send the file, or its data: URL", name)
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, f"{name} is not base64", name) from None
