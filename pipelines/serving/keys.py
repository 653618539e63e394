"""API keys: their hashes, what a request carries, and whose jobs it may see.

The driver reads CINEMO_API_KEYS and passes hashes on, so that a service has its keys on whichever node it answers.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence

from pipelines.serving.errors import ApiError

EVERYONE = "everyone"  # owner of all jobs where no keys are set


def from_environment(required: bool) -> list[str]:
    """SHA-256 of each key in CINEMO_API_KEYS, which commas separate. Raises ValueError for none where required."""
    keys = [key.strip() for key in os.environ.get("CINEMO_API_KEYS", "").split(",") if key.strip()]
    if required and not keys:
        raise ValueError("require_keys: CINEMO_API_KEYS is empty; set it to KEY,KEY,... where the service is started")
    return [digest(key) for key in keys]


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def in_header(authorization: str | None) -> str:
    """The key of "Bearer KEY", or of "Basic ..." as browsers send it, whose password it is; "" where there is none."""
    kind, _, value = (authorization or "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def owner(authorization: str | None, known: Sequence[str]) -> str:
    """The owner whose jobs a request sees. known: hashes. Raises ApiError (401) for a key that is not among them."""
    if not known:
        return EVERYONE
    given = digest(in_header(authorization))
    matches = [hmac.compare_digest(given, one) for one in known]  # all of them: the time does not tell which
    if not any(matches):
        raise ApiError(401, "send Authorization: Bearer KEY with a key of this service", code="invalid_api_key")
    return given[:32]
