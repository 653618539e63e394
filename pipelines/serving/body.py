"""The body of a request for a video: multipart or JSON, within limits -> settings and the bytes of the image.

Knows bytes and forms. Knows nothing of what settings mean. No URL is fetched, and no name from a client is a path.
"""

import base64
import binascii
import json
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipelines.serving.errors import ApiError

IMAGE = "input_reference"
MOST_FIELDS = 64


async def read(request: Request, most: int) -> tuple[dict[str, Any], bytes]:
    """(the fields but input_reference, the image's bytes) of a request. most: bytes of its body.

    A field of a form is text, whatever it stands for. Raises ApiError: 400 for a body that cannot be read, 413 for one
    that is too large, 415 for another type, 422 for an image that is missing or no data.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise ApiError(415, f"content-type {kind or 'is missing'}: send multipart/form-data or application/json")
    body = await read_bytes(request, most)
    fields = json_fields(body) if kind == "application/json" else await form_fields(request.headers, body)
    given = fields.pop(IMAGE, None)
    image = given if isinstance(given, bytes) else from_data_url(given)
    if not image:
        raise ApiError(422, f"{IMAGE} is empty (0 bytes); send a JPEG, PNG or WebP file", IMAGE)
    return fields, image


async def read_bytes(request: Request, most: int) -> bytes:
    """The whole body, refused as soon as it is known to be too large."""
    check_length(request, most)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large(most)
    return bytes(body)


def check_length(request: Request, most: int) -> None:
    """Raise ApiError (413) when a body says that it is longer than `most` bytes."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise too_large(most)


def too_large(most: int) -> ApiError:
    """The answer to a body of more than `most` bytes."""
    return ApiError(413, f"the body has more than {most:,} bytes; send a smaller image", IMAGE)


def json_fields(body: bytes) -> dict[str, Any]:
    """The members of a JSON object."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is no JSON object")
    return fields


async def form_fields(headers: Headers, body: bytes) -> dict[str, Any]:
    """The fields of a form: text, and for files their bytes."""

    async def once() -> Any:
        yield body

    try:
        parser = MultiPartParser(headers, once(), max_files=1, max_fields=MOST_FIELDS, max_part_size=len(body) + 1)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        problem = getattr(error, "message", None) or "it is no multipart form"
        raise ApiError(400, f"the body cannot be read: {problem}") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ApiError(422, f"{name} is given twice", name)
        fields[name] = await value.read() if isinstance(value, UploadFile) else value
    await form.close()
    if not fields:
        raise ApiError(400, "the body has no complete part; was it cut off?")
    return fields


def from_data_url(given: Any) -> bytes:
    """The bytes of `data:image/png;base64,...`, alone or as {"image_url": ...}. Raises ApiError."""
    if isinstance(given, dict) and set(given) <= {"image_url", "file_id"}:
        given = given.get("image_url")
    if given is None:
        raise ApiError(422, f"{IMAGE} is required: an image file, or its data: URL", IMAGE)
    if not isinstance(given, str) or not given.lower().startswith("data:"):
        raise ApiError(422, f"{IMAGE} should be a file, or a data: URL; other URLs are not fetched", IMAGE)
    head, comma, data = given.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ApiError(422, f"{IMAGE} should be data:TYPE;base64,DATA", IMAGE)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, f"{IMAGE} is not base64", IMAGE) from None
