"""Fetch images that requests name by URL, from places that the operator allows, within limits of size and time."""

import asyncio
import urllib.parse
from typing import Any

from pipelines.core.patience import REFUSED
from pipelines.serving.http import dialect, outbound
from pipelines.serving.http.errors import ApiError
from pipelines.serving.settings import ServeSettings

AT_ONCE = 8  # images that a process fetches at a time; others wait
MOST_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)


class AwayError(Exception):
    """The host gives no image now, but may later."""


class Links:
    """Fetches images. Use it from one event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.images = settings, settings.image_urls
        self.slots = asyncio.Semaphore(AT_ONCE)

    async def replace(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Replace URLs in a request's fields for the image by the bytes of the image. Raises ApiError (422).

        Without places that are allowed, the fields are returned as they are.
        """
        if not self.images.allow:
            return fields
        fields = dialect.merge_extra(fields)
        urls = {name: url for name in fields if dialect.is_image(name) and (url := url_in(fields[name]))}
        if len(urls) > 1:
            raise dialect.too_many(len(urls))
        return {**fields, **{name: await self.fetch(url) for name, url in urls.items()}}

    async def fetch(self, url: str) -> bytes:
        """Fetch an image. Every redirect must lead to an allowed place, too.

        Raises ApiError (422), whose code is image_away if the same URL may work later.
        """
        code = "invalid_image"
        try:
            async with self.slots, asyncio.timeout(self.images.timeout_s):
                for _ in range(1 + MOST_REDIRECTS):
                    answer = await self._get(url)
                    if isinstance(answer, bytes):
                        return answer
                    url = urllib.parse.urljoin(url, answer)
            problem = f"more than {MOST_REDIRECTS} redirects"
        except TimeoutError:
            problem, code = f"no image within {self.images.timeout_s:g} s", "image_away"
        except AwayError as error:
            problem, code = str(error), "image_away"
        except ValueError as error:
            problem = str(error)
        except Exception as error:  # aiohttp raises many types, whose messages may tell of the inner network
            is_refused = REFUSED in str(error)
            problem = f"the host {REFUSED}" if is_refused else "the host does not answer"
            code = "invalid_image" if is_refused else "image_away"
        raise ApiError(422, f"{dialect.IMAGE}: the URL cannot be used: {problem}", dialect.IMAGE, code)

    async def _get(self, url: str) -> bytes | str:
        """The bytes behind a URL, or where it redirects to.

        Raises ValueError or AwayError with a sentence, and aiohttp's errors.
        """
        host, most = check_allowed(url, self.settings), self.settings.limits.max_bytes
        async with (
            outbound.session(host, self.settings.private_hosts, self.images.timeout_s) as session,
            session.get(url, allow_redirects=False, headers={"accept-encoding": "identity"}) as answer,
        ):
            if answer.status in REDIRECTS:
                return answer.headers.get("location", "")
            if answer.status == 429 or answer.status >= 500:
                raise AwayError(f"the host answered {answer.status}")
            if answer.status != 200:
                raise ValueError(f"the host answered {answer.status}")
            data = bytearray()
            async for part in answer.content.iter_chunked(1 << 16):
                data += part
                if len(data) > most:
                    raise ValueError(f"the image has more than {most:,} bytes")
            return bytes(data)


def url_in(value: Any) -> str | None:
    """The URL of a web server in a field for the image, which is text or OpenAI's objects; None if there is none."""
    while isinstance(value, dict | list) and len(value) == 1:
        value = value[0] if isinstance(value, list) else value.get("image_url", value.get("url"))
    is_url = isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))
    return value.strip() if is_url else None


def check_allowed(url: str, settings: ServeSettings) -> str:
    """Check that an image may be fetched from a URL; returns its host. Raises ValueError."""
    asked = outbound.parse(url, settings.private_hosts)
    # A server may resolve .. and escapes, and leave the folder that is allowed.
    path = urllib.parse.unquote(asked.path or "/")
    if "\\" in path or "/../" in f"{path}/" or "/./" in f"{path}/":
        raise ValueError("its path has . or ..")
    for prefix in settings.image_urls.allow:
        allowed = urllib.parse.urlsplit(prefix)
        same_host = (asked.scheme, asked.hostname, port(asked)) == (allowed.scheme, allowed.hostname, port(allowed))
        if same_host and path.startswith(allowed.path or "/"):
            return asked.hostname or ""
    raise ValueError(f"{asked.hostname} or this folder of it is not among the places that this service fetches from")


def port(parts: urllib.parse.SplitResult) -> int:
    """Port of a URL, also if it is the scheme's own."""
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
