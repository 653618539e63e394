"""Time limits for reading and sending bodies, so that a client that stalls loses its place among the transfers."""

import asyncio
import logging
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.http.errors import ApiError

logger = logging.getLogger("ray.serve")

PART = 1 << 20  # bytes; no file is sent in larger parts
PART_S = 60.0  # most seconds that a client may take over PART bytes: 17 KB a second


class SendLimit:
    """Middleware: end a response when its client takes longer than PART_S seconds to receive one part of it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. A response that is cut off has fewer bytes than its Content-Length."""
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
            await self.app(scope, receive, limited)
        except TimeoutError:
            if not is_late:
                raise
            logger.warning("a response was cut off: its client did not receive a part of it in %g s", PART_S)


async def received(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the parts of a body. Raises ApiError (408) when PART bytes, or the rest, take longer than PART_S."""
    clock, size = asyncio.get_running_loop().time, 0
    until = clock() + PART_S
    while True:
        try:
            async with asyncio.timeout_at(until):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            message = f"the body arrives too slowly: less than {PART:,} bytes in {PART_S:g} s; send it again"
            raise ApiError(408, message) from None
        yield part
        size += len(part)
        if size >= PART:
            until, size = clock() + PART_S, 0
