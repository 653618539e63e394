"""API keys: their hashes, the key of a request, the owner whose jobs it may see, and what each owner may ask for.

Keys come from CINEMO_API_KEYS, of which the driver passes hashes on, so that ingresses on every node know the same
keys, and from a file of hashes (the setting keys_file), which is read again when it has changed.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from pipelines.core import storage
from pipelines.serving.http.errors import ApiError
from pipelines.serving.settings import ServeSettings

logger = logging.getLogger("ray.serve")

EVERYONE = "everyone"  # owner of all jobs if no keys are set
READ_EVERY_S = 5.0  # seconds between two readings of the file
MINUTE_S = 60.0


class Key(BaseModel, frozen=True, extra="forbid"):
    """An entry of the file. Entries of one name have the same videos and quotas, so that a key can be replaced."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$", description="the owner, in logs and in the database")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the key, in hexadecimal")
    max_open: int | None = Field(None, ge=1, description="queued and running videos; default: max_queue_per_key")
    per_minute: int | None = Field(None, ge=1, description="requests for videos; default: limits.per_minute")
    priority: int | None = Field(
        None,
        ge=1,
        le=100,
        description="share of the replicas beside other keys whose videos wait; default: 1",
    )


def from_environment(settings: ServeSettings) -> list[str]:
    """SHA-256 of each key in CINEMO_API_KEYS, separated by commas. Raises ValueError if keys are required."""
    keys = [key.strip() for key in os.environ.get("CINEMO_API_KEYS", "").split(",") if key.strip()]
    if settings.require_keys and not keys and settings.keys_file is None:
        raise ValueError(
            "require_keys: CINEMO_API_KEYS is empty; set it to KEY,KEY,... where the service is started, or keys_file"
        )
    return [digest(key) for key in keys]


def from_file(uri: str) -> list[Key]:
    """Read a file of keys: YAML, a list of entries. Raises ValueError for another file, OSError if storage fails."""
    data = storage.read(storage.absolute(uri))
    if data is None:
        raise ValueError(f"keys_file {uri} does not exist; check the path")
    try:
        return TypeAdapter(list[Key]).validate_python(yaml.safe_load(data) or [])
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"keys_file {uri}: {where or 'it'}: {first['msg']}") from None
    except (yaml.YAMLError, UnicodeDecodeError):  # their messages quote the file
        raise ValueError(f"keys_file {uri} is not YAML; make it a list of name and sha256") from None


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


class Keys:
    """The keys that a process knows, and the requests of the last minute by owner."""

    def __init__(self, settings: ServeSettings, hashes: Sequence[str]) -> None:
        """hashes: of CINEMO_API_KEYS. Raises ValueError or OSError if the file cannot be read."""
        self.settings, self.hashes = settings, hashes
        self.entries = from_file(settings.keys_file) if settings.keys_file else []
        self.recent: dict[str, deque[float]] = {}  # times of requests, by owner

    async def run(self) -> None:
        """Read the file again and again. What two readings agree on is used, because a file may be half written."""
        last = self.entries
        while self.settings.keys_file:
            await asyncio.sleep(READ_EVERY_S)
            try:
                entries = await asyncio.to_thread(from_file, self.settings.keys_file)
            except Exception as error:  # whatever the file holds, this loop goes on: keys must stay revocable
                logger.warning("the keys are still those of before: %s", error)
                continue
            is_settled, last = entries == last, entries
            if is_settled and entries != self.entries:
                self.entries = entries
                logger.info("keys of %s", ", ".join(sorted({entry.name for entry in entries})) or "nobody")

    @property
    def owners(self) -> int:
        """Number of owners."""
        return len(set(self.hashes)) + len({entry.name for entry in self.entries})

    def owner(self, authorization: str | None) -> str:
        """The owner whose jobs a request with this header may see. Raises ApiError (401) for an unknown key."""
        if not self.hashes and not self.settings.keys_file:
            return EVERYONE
        key = in_header(authorization)
        hashed = digest(key)
        known = {**{known: known[:32] for known in self.hashes}, **{entry.sha256: entry.name for entry in self.entries}}
        # Compare with all, so that the time reveals nothing.
        matches = [name for known_hash, name in known.items() if hmac.compare_digest(hashed, known_hash)]
        if not key or not matches:  # the hash of an empty key in the file admits nobody
            raise ApiError(401, "send Authorization: Bearer KEY with a key of this service", code="invalid_api_key")
        return matches[0]

    def max_open(self, owner: str) -> int:
        """Limit of an owner's queued and running videos."""
        limits = self.settings.limits
        return self._own(owner, "max_open") or limits.max_queue_per_key or limits.share(self.owners)

    def priority(self, owner: str) -> int:
        """Priority of an owner: while several owners wait, they share the replicas in proportion to theirs."""
        return self._own(owner, "priority") or 1

    def count(self, owner: str) -> None:
        """Count a request for a video. Raises ApiError (429) if the owner has sent too many within a minute.

        Each of several ingresses counts its own, and allows an equal part.
        """
        limit = self._own(owner, "per_minute") or self.settings.limits.per_minute
        if not limit:
            return
        limit, now = math.ceil(limit / self.settings.ingress_replicas), time.monotonic()
        recent = self.recent.setdefault(owner, deque())
        while recent and recent[0] <= now - MINUTE_S:
            recent.popleft()
        if len(recent) >= limit:
            seconds = str(math.ceil(recent[0] + MINUTE_S - now))
            sentence = f"{limit} requests a minute are allowed; send the request again in {seconds} s"
            raise ApiError(429, sentence, code="rate_limit_exceeded", headers={"Retry-After": seconds})
        recent.append(now)

    def _own(self, owner: str, quota: str) -> Any:
        """The largest quota that an owner's entries state; None if they state none."""
        stated = [getattr(entry, quota) for entry in self.entries if entry.name == owner]
        return max((value for value in stated if value is not None), default=None)
