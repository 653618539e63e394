"""Requests to addresses that users of the service name: over HTTP, and to no private address that is not allowed.

A host name is checked when it is connected to, so that a name server that answers differently the second time gains
nothing.
"""

import functools
import urllib.parse
from collections.abc import Collection
from typing import TYPE_CHECKING

from pipelines.sources import places

if TYPE_CHECKING:
    import aiohttp


def parse(url: str, private_hosts: Collection[str]) -> urllib.parse.SplitResult:
    """Parse the URL of a web server. Raises ValueError for another URL, or for a private address that is not allowed.

    private_hosts: hosts that may be private.
    """
    parts = urllib.parse.urlsplit(url)  # raises ValueError for a malformed host
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        raise ValueError("should be http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("should have no user name or password")
    parts.port  # noqa: B018 - raises ValueError for a number that is none
    if places.is_private(parts.hostname) and parts.hostname not in private_hosts:
        raise ValueError(f"{parts.hostname} is a private address; the operator may add it to private_hosts")
    return parts


def session(host: str, private_hosts: Collection[str], seconds: float) -> "aiohttp.ClientSession":
    """Open a session for requests to a host, which uses no proxy. seconds: of a whole request and its answer."""
    import aiohttp

    remedy = "the operator may add the host to private_hosts"
    guard = None if host in private_hosts else functools.partial(places.public_socket, remedy=remedy)
    connector = aiohttp.TCPConnector(socket_factory=guard, force_close=True)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=seconds),
        auto_decompress=False,  # a small answer could become a large one
        cookie_jar=aiohttp.DummyCookieJar(),
    )
