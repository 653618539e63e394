"""Middleware of every response: metrics, headers that protect browsers, HEAD, and the page's keys and limits."""

import time
from typing import Any

from fastapi import Request, Response

from pipelines.serving.http import body
from pipelines.serving.http.errors import ApiError
from pipelines.serving.service import Service

PAGE_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"


async def observe_and_guard(request: Request, call_next: Any) -> Response:
    """Middleware: count and time every response, add the headers that protect browsers, and answer HEAD like GET."""
    is_head = request.method == "HEAD"
    if is_head:
        request.scope["method"] = "GET"
    began, metrics = time.perf_counter(), request.app.state.metrics  # Gradio's application replaces request.app
    to_page = is_page(request)  # asked before mounted applications change the scope
    response = (refused(request) if to_page else None) or await call_next(request)
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


def refused(request: Request) -> Response | None:
    """Response that refuses a request to the page without a valid key or of excessive length; None for all others.

    Gradio's own routes would accept uploads and calls of any size from anybody, and serve files. The API's routes have
    their own checks.
    """
    service: Service = request.app.state.service
    try:
        service.owner(request.headers.get("authorization"))
        body.check_length(request, service.settings.limits.max_bytes)
        if "transfer-encoding" in request.headers:
            raise ApiError(411, "send Content-Length")
    except ApiError as error:
        headers = {"WWW-Authenticate": 'Basic realm="Cinemo: any name, and an API key as password"'}
        return Response(error.message, error.status, headers if error.status == 401 else {}, "text/plain")
    return None


def is_page(request: Request) -> bool:
    """Whether a request goes to the page or one of gradio's routes, also where Serve has a route prefix."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return path.startswith("/ui")
