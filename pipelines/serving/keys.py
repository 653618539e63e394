"""API keys: their hashes, the key of a request, and the owner whose jobs it may see.

The driver reads CINEMO_API_KEYS and passes hashes on, so that ingresses on every node know the same keys.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence

from pipelines.serving.errors import ApiError

EVERYONE = "everyone"  # owner of all jobs if no keys are set


def from_environment(required: bool) -> list[str]:
    """SHA-256 of each key in CINEMO_API_KEYS, separated by commas. Raises ValueError if required and there is none."""
    keys = [key.strip() for key in os.environ.get("CINEMO_API_KEYS", "").split(",") if key.strip()]
    if required and not keys:
        raise ValueError("require_keys: CINEMO_API_KEYS is empty; set it to KEY,KEY,... where the service is started")
    return [digest(key) for key in keys]


def digest(key: str) -> str:
    """SHA-256 of a key, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def in_header(authorization: str | None) -> str:
    """The key in "Bearer KEY", or the password in "Basic ..." as browsers send it; "" if there is none."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def owner(authorization: str | None, known: Sequence[str]) -> str:
    """The owner whose jobs a request may see. known: hashes of keys. Raises ApiError (401) for an unknown key."""
    if not known:
        return EVERYONE
    hashed = digest(in_header(authorization))
    matches = [hmac.compare_digest(hashed, key) for key in known]  # compare with all, so that the time reveals nothing
    if not any(matches):
        raise ApiError(401, "send Authorization: Bearer KEY with a key of this service", code="invalid_api_key")
    return hashed[:32]
