"""Parse the body of a request for a video, multipart or JSON, into its fields, within limits.

No URL is fetched, and no name from a client is used as a path.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from pipelines.serving.http import pace
from pipelines.serving.http.errors import ApiError

MAX_FILES = 8
MAX_FIELDS = 64
MAX_TEXT = 1 << 16  # bytes of a text field in a form with a large file
CHARSETS = (b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1", b"latin1")  # quick to decode


async def read(request: Request, most: int, name: str = "input_reference") -> dict[str, Any]:
    """Read the fields of a request; values in a form are text, or bytes for a file. most: largest body, in bytes.

    name: of the field that makes a body too large.

    Raises ApiError: 400 for a body that cannot be read, 408 for one that stalls, 413 for one that is too large, 415 for
    another type, 422 for a field that is given twice.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("multipart/form-data", "application/json"):
        raise ApiError(415, f"content-type {media_type or 'is missing'}: send multipart/form-data or application/json")
    body = await read_bytes(request, most, name)
    return json_fields(body) if media_type == "application/json" else await form_fields(request.headers, body)


async def read_bytes(request: Request, most: int, name: str) -> bytes:
    """Read the whole body. Raises ApiError: 413 as soon as more than `most` bytes have arrived, 408 (see `pace`)."""
    check_length(request, most, name)
    body = bytearray()
    async for part in parts_of(request):
        body += part
        if len(body) > most:
            raise too_large(most, name)
    return bytes(body)


async def parts_of(request: Request) -> AsyncIterator[bytes]:
    """Yield the parts of a body. Raises ApiError (408) when the client takes too long over one (see `pace`)."""
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect:  # or the client has gone, and reads no answer
        message = f"the body arrives too slowly: less than {pace.PART:,} bytes in {pace.PART_S:g} s; send it again"
        raise ApiError(408, message) from None


def check_length(request: Request, most: int, name: str = "input_reference") -> None:
    """Raise ApiError (413) when Content-Length is more than `most` bytes."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > most:
        raise too_large(most, name)


def check_charset(headers: Headers) -> None:
    """Raise ApiError (415) for a form neither in UTF-8 nor in Latin-1: some decoders of Python take hours for 20 MB."""
    charset = parse_options_header(headers.get("content-type"))[1].get(b"charset", b"utf-8")
    if charset.lower() not in CHARSETS:
        raise ApiError(415, "content-type: send a form in UTF-8")


def too_large(most: int, name: str) -> ApiError:
    """Error for a body of more than `most` bytes."""
    return ApiError(413, f"the body has more than {most:,} bytes; send a smaller file", name)


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

    async def once() -> AsyncIterator[bytes]:
        yield body

    async with form_of(headers, once(), len(body) + 1) as fields:
        return {name: await value.read() if isinstance(value, UploadFile) else value for name, value in fields.items()}


@contextlib.asynccontextmanager
async def read_form(request: Request, most: int, name: str) -> AsyncIterator[dict[str, Any]]:
    """Read a multipart form and yield its fields, as `form_of` does. Large files wait on the disk, not in memory.

    most: largest body, in bytes. name: as in `read`. Raises ApiError as `read` does; 408 for a slow body.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, f"send multipart/form-data with {name}")
    check_length(request, most, name)

    async def bounded() -> AsyncIterator[bytes]:
        read = 0
        async for part in parts_of(request):
            read += len(part)
            if read > most:
                raise too_large(most, name)
            yield part

    async with form_of(request.headers, bounded(), MAX_TEXT) as fields:
        yield fields


@contextlib.asynccontextmanager
async def form_of(headers: Headers, parts: AsyncIterator[bytes], most_text: int) -> AsyncIterator[dict[str, Any]]:
    """Parse a multipart form and yield its fields: texts as str, files as UploadFile. Raises ApiError (400, 415, 422).

    parts: of the body. most_text: most bytes of a text. The files are closed at the end of the block.
    """
    check_charset(headers)
    try:
        limits = {"max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": most_text}
        form = await MultiPartParser(headers, parts, **limits).parse()  # type: ignore[arg-type]
    except (MultiPartException, KeyError, ValueError, LookupError) as error:
        problem = getattr(error, "message", None) or "it is not a multipart form"
        raise ApiError(400, f"the body cannot be read: {problem}") from None
    try:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise ApiError(422, f"{name} is given twice", name)
            fields[name] = value
        if not fields:
            raise ApiError(400, "the body has no complete part; send it again, it may have been cut off")
        yield fields
    finally:
        await form.close()
