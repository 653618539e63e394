"""Error responses: OpenAI's error object, naming the field.

The response to an unexpected error reveals nothing about the service's internals.
"""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from pipelines.serving.jobs.database import UNAVAILABLE

logger = logging.getLogger("ray.serve")

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error response. status: HTTP status code. param: the field that was wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers


def answer(error: ApiError) -> JSONResponse:
    """Convert an error to a response."""
    return JSONResponse({"error": detail(error)}, error.status, dict(error.headers or {}))


def detail(error: ApiError) -> dict[str, Any]:
    """OpenAI's error object."""
    error_type = TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"message": error.message, "type": error_type, "param": error.param, "code": error.code}


def from_validation(problems: Any) -> ApiError:
    """Convert pydantic's problems to one error (422) about the first field."""
    first = problems[0]
    names = [str(part) for part in first["loc"] if part not in ("query", "path", "body", "header")]
    name = ".".join(names) or None
    message = first["msg"].removeprefix("Value error, ")
    sentence = "is not known" if first["type"] == "extra_forbidden" else message[:1].lower() + message[1:]
    if first["type"] == "missing":
        sentence = "is required"
    return ApiError(422, f"{name or 'the request'}: {sentence}", name)


def from_exception(error: Exception) -> ApiError:
    """Convert any exception to the error that a client sees."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError | ValidationError):
        return from_validation(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, UNAVAILABLE):
        logger.error("the database does not respond: %s", error)
        message = "the database does not respond; send the request again, with the same Idempotency-Key"
        return ApiError(503, message, headers={"Retry-After": "5"})
    logger.exception("unexpected error", exc_info=error)
    return ApiError(500, "an unexpected error; see the service's log")


def install(app: FastAPI) -> None:
    """Make the application answer every error with an error object."""

    async def respond(_: Request, error: Exception) -> JSONResponse:
        return answer(from_exception(error))

    for kind in (ApiError, RequestValidationError, ValidationError, HTTPException, *UNAVAILABLE, Exception):
        app.add_exception_handler(kind, respond)
