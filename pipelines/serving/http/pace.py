"""Limits of clients that stall: the time for each part of a body, and the requests that a key has open at a time."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.http import errors
from pipelines.serving.http.api_keys import EVERYONE
from pipelines.serving.http.errors import ApiError

logger = logging.getLogger("ray.serve")

PART = 1 << 20  # bytes; no file is sent in larger parts
PART_S = 60.0  # most seconds that a client may take over PART bytes: 17 KB a second
MOST_OPEN = 900  # open requests of an ingress; Serve sends it up to 1000, which leaves room for /health
MOST_OPEN_PER_KEY = 100
UNLIMITED = ("/health", "/metrics")


class TransferLimit:
    """Middleware: end a request whose client takes longer than PART_S seconds to send or to receive one part."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. A response that is cut off has fewer bytes than its Content-Length."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_late = False

        async def limited(message: Message) -> None:
            nonlocal is_late
            try:
                async with asyncio.timeout(PART_S):
                    await send(message)
            except TimeoutError:
                is_late = True
                raise

        try:
            await self.app(scope, limit_receive(receive), limited)
        except TimeoutError:
            if not is_late:
                raise
            logger.warning("a response was cut off: its client did not receive a part of it in %g s", PART_S)


def limit_receive(receive: Receive) -> Receive:
    """Report to the application that the client has gone when PART bytes of its body, or the rest, take over PART_S.

    Time counts from the first read: a request may have to wait for its turn, its body unread.
    """
    clock, size, is_whole = asyncio.get_running_loop().time, 0, False
    until: float | None = None

    async def limited() -> Message:
        nonlocal size, until, is_whole
        if is_whole:  # what comes now is that the client disconnects
            return await receive()
        until = until or clock() + PART_S
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        is_whole, size = not message.get("more_body", False), size + len(message.get("body", b""))
        if size >= PART:
            until, size = clock() + PART_S, 0
        return message

    return limited


class OpenLimit:
    """Middleware: refuse a request while its key has MOST_OPEN_PER_KEY others open, such as event streams.

    At most MOST_OPEN are open in all; without keys, that is the only limit.
    """

    def __init__(self, app: ASGIApp, owner: Callable[[str | None], str]) -> None:
        """owner: returns the owner of an Authorization header. Raises ApiError for an unknown key."""
        self.app, self.owner = app, owner
        self.open: Counter[str] = Counter()  # by owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count it until its response has ended."""
        if (owner := self.counted(scope)) is None:
            await self.app(scope, receive, send)
            return
        if self.open.total() >= MOST_OPEN or (owner != EVERYONE and self.open[owner] >= MOST_OPEN_PER_KEY):
            message = "too many requests are open; close some, or send it again later"
            error = ApiError(429, message, code="rate_limit_exceeded", headers={"Retry-After": "5"})
            await errors.answer(error)(scope, receive, send)
            return
        self.open[owner] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.open[owner] -= 1

    def counted(self, scope: Scope) -> str | None:
        """Owner of a request that counts; None for health, metrics, and unknown keys, which their route refuses."""
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")).startswith(UNLIMITED):
            return None
        try:
            return self.owner(Headers(scope=scope).get("authorization"))
        except ApiError:
            return None
