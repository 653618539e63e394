"""A web server of this machine for tests: receives webhooks, serves images, redirects, and may be down."""

import contextlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tests.pipelines.serving.conftest import free_port


class Received(NamedTuple):
    """A request, and the status that it was answered with."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int


class Receiver:
    """A server on one port, which may be stopped and started again. Answers 200 and nothing, unless told otherwise."""

    def __init__(self) -> None:
        self.port = free_port()
        self.received: list[Received] = []
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes]] = lambda path: (200, {}, b"")
        self.server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        of = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                status, headers, content = of.answer(self.path)
                names = {name.lower(): value for name, value in self.headers.items()}
                of.received.append(Received(self.path, names, body, status))
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                with contextlib.suppress(ConnectionError):  # who asked has gone
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = handle_any  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
