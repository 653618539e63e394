"""An S3 server behind a proxy that can be slow or fail: 503 SlowDown, reset connections, or no answer at all."""

import http.client
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
EXPIRED = b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"


class Outage:
    """The proxy. `fail` begins an outage; requests that met it are counted in `met`."""

    def __init__(self, server: str) -> None:
        """server: the address of the S3 server behind it."""
        self.behind = urllib.parse.urlsplit(server).netloc
        self.kind, self.left, self.name, self.met = "", 0, "", 0
        self.delay: Callable[[str, str], float] = lambda method, path: 0.0  # seconds before a request is passed on
        self.lock, self.over = threading.Lock(), threading.Event()
        self.server = Server(self)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, kind: str, requests: int = 10**9, name: str = "") -> None:
        """Let that many requests fail, of paths that contain `name`. kind: slow, expired, reset or silence."""
        self.kind, self.left, self.name, self.met = kind, requests, name, 0

    def end(self) -> None:
        """End the outage."""
        self.left = 0
        self.over.set()

    def takes(self, path: str) -> str:
        """The kind of the fault that a request meets; "" for none."""
        with self.lock:
            if self.left <= 0 or self.name not in urllib.parse.unquote(path):
                return ""
            self.left -= 1
            self.met += 1
            return self.kind

    def close(self) -> None:
        self.end()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Passes requests on to the S3 server, unless an outage makes them fail."""

    server: "Server"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one(self) -> None:
        outage, body = self.server.outage, self.body()
        time.sleep(outage.delay(self.command, urllib.parse.unquote(self.path)))
        kind = outage.takes(self.path)
        if kind == "reset":  # RST in place of an answer
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif kind == "silence":
            outage.over.wait(60)
            self.close_connection = True
        elif kind:
            self.answer(503 if kind == "slow" else 400, {}, SLOW_DOWN if kind == "slow" else EXPIRED)
        else:
            self.pass_on(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815

    def pass_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.server.outage.behind)
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers = {**headers, "content-length": str(len(body))}
        for name in ("transfer-encoding", "expect"):
            headers.pop(name, None)
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        self.answer(answer.status, dict(answer.headers), answer.read())
        connection.close()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Server(ThreadingHTTPServer):
    def __init__(self, outage: Outage) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.outage = outage

    def handle_error(self, *_: Any) -> None:  # clients that went away
        pass
