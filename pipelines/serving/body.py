"""Parse the body of a request for a video: multipart or JSON, within limits -> settings and the bytes of the image.

No URL is fetched, and no name from a client is used as a path.
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
    """Read a request: (its fields without input_reference, the image's bytes). most: bytes that the body may have.

    All fields of a form are text. Raises ApiError: 400 for a body that cannot be read, 413 for one that is too large,
    415 for another type, 422 for a missing or invalid image.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("multipart/form-data", "application/json"):
        raise ApiError(415, f"content-type {media_type or 'is missing'}: send multipart/form-data or application/json")
    body = await read_bytes(request, most)
    fields = json_fields(body) if media_type == "application/json" else await form_fields(request.headers, body)
    value = fields.pop(IMAGE, None)
    image = value if isinstance(value, bytes) else from_data_url(value)
    if not image:
        raise ApiError(422, f"{IMAGE} is empty (0 bytes); send a JPEG, PNG or WebP file", IMAGE)
    return fields, image


async def read_bytes(request: Request, most: int) -> bytes:
    """Read the whole body. Raises ApiError (413) as soon as more than `most` bytes have arrived."""
    check_length(request, most)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise too_large(most)
    return bytes(body)


def check_length(request: Request, most: int) -> None:
    """Raise ApiError (413) when Content-Length is more than `most` bytes."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise too_large(most)


def too_large(most: int) -> ApiError:
    """Error for a body of more than `most` bytes."""
    return ApiError(413, f"the body has more than {most:,} bytes; send a smaller image", IMAGE)


def json_fields(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ApiError (400)."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "the body is not a JSON object")
    return fields


async def form_fields(headers: Headers, body: bytes) -> dict[str, Any]:
    """Parse a multipart form: text fields as str, files as bytes. Raises ApiError (400, 422)."""

    async def once() -> Any:
        yield body

    try:
        parser = MultiPartParser(headers, once(), max_files=1, max_fields=MOST_FIELDS, max_part_size=len(body) + 1)
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        problem = getattr(error, "message", None) or "it is not a multipart form"
        raise ApiError(400, f"the body cannot be read: {problem}") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise ApiError(422, f"{name} is given twice", name)
        fields[name] = await value.read() if isinstance(value, UploadFile) else value
    await form.close()
    if not fields:
        raise ApiError(400, "the body has no complete part; send it again, it may have been cut off")
    return fields


def from_data_url(value: Any) -> bytes:
    """Decode `data:image/png;base64,...`, alone or as {"image_url": ...}. Raises ApiError (422)."""
    if isinstance(value, dict) and set(value) <= {"image_url", "file_id"}:
        value = value.get("image_url")
    if value is None:
        raise ApiError(422, f"{IMAGE} is required: an image file, or its data: URL", IMAGE)
    if not isinstance(value, str) or not value.lower().startswith("data:"):
        raise ApiError(422, f"{IMAGE} should be a file, or a data: URL; other URLs are not fetched", IMAGE)
    head, comma, data = value.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ApiError(422, f"{IMAGE} should be data:TYPE;base64,DATA", IMAGE)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, f"{IMAGE} is not base64", IMAGE) from None
