"""Middleware of every request: metrics, headers that protect browsers, HEAD, other sites, keys of the page."""

import time
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response

from pipelines.serving.http import body, errors
from pipelines.serving.http.errors import ApiError
from pipelines.serving.service import Service

PAGE_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
# In paths of gradio's routes: URLs, which it would fetch, and its screen recorder, which runs ffmpeg in this process.
CLOSED = ("://", "/process_recording")


async def observe_and_guard(request: Request, call_next: Any) -> Response:
    """Middleware: count and time every response, add the headers that protect browsers, and answer HEAD like GET."""
    is_head = request.method == "HEAD"
    if is_head:
        request.scope["method"] = "GET"
    began, metrics = time.perf_counter(), request.app.state.metrics  # Gradio's application replaces request.app
    to_page = is_page(request)  # asked before mounted applications change the scope
    response = refused(request, to_page) or await call_next(request)
    if is_head:  # only the headers, of an event stream too
        request.scope["method"], headers = "HEAD", response.raw_headers
        response = Response(status_code=response.status_code)
        response.raw_headers = headers
    route = getattr(request.scope.get("route"), "path", "other")  # the pattern, so that each route is one series
    seconds = time.perf_counter() - began
    metrics.answered(request.method, route, response.status_code, seconds)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers.setdefault("X-Frame-Options", "DENY")
    if to_page:  # gradio's page runs inline code; nothing may come from elsewhere
        response.headers["Content-Security-Policy"] = PAGE_POLICY
    return response


def refused(request: Request, to_page: bool) -> Response | None:
    """Response that refuses a request from a page of another site, or one that the page does not take; else None."""
    try:
        check_site(request)
        if to_page:
            check_page(request)
    except ApiError as error:
        if not to_page:
            return errors.answer(error)
        headers = {"WWW-Authenticate": 'Basic realm="Cinemo: any name, and an API key as password"'}
        return Response(error.message, error.status, headers if error.status == 401 else {}, "text/plain")
    return None


def check_site(request: Request) -> None:
    """Raise ApiError (403) for a request from a page of another site, unless it is a link or in `allow_origins`.

    Browsers send forms and load images without a preflight, so any website could use a service without keys. They
    report the page's site in Sec-Fetch-Site, or, to http:// addresses other than localhost, only in Origin.
    """
    headers, allowed = request.headers, request.app.state.service.settings.allow_origins
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()  # forms of other sites cannot send it
    own = [f"{scheme}://{host}" for scheme in ("http", "https") for host in (headers.get("host"), forwarded) if host]
    if site is None and (origin is None or origin in own):
        return  # no browser, or a page of this service
    is_link = request.method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    if site in ("same-origin", "none") or is_link or request.method == "OPTIONS":
        return
    if origin is None:  # an image or a video in a page
        origin = origin_of(headers.get("referer", ""))
    if "*" not in allowed and origin not in allowed:
        raise ApiError(403, "web pages of this origin may not call this service; see allow_origins")


def origin_of(url: str) -> str:
    """Origin of a URL, such as https://host:8000; "null", as browsers write it, where there is none."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as http://[
        return "null"
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else "null"


def check_page(request: Request) -> None:
    """Raise ApiError for a request to the page without a valid key, of excessive length, or to what it does not use.

    Gradio's own routes would accept uploads and calls of any size from anybody, and serve files. The API's routes have
    their own checks.
    """
    service: Service = request.app.state.service
    service.owner(request.headers.get("authorization"))
    if any(part in request.scope["path"] for part in CLOSED):
        raise ApiError(403, "the page does not use this route")
    body.check_charset(request.headers)
    body.check_length(request, service.settings.limits.max_bytes)
    if "transfer-encoding" in request.headers:
        raise ApiError(411, "send Content-Length")


def is_page(request: Request) -> bool:
    """Whether a request goes to the page or one of gradio's routes, also where Serve has a route prefix."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path.startswith("/ui")
