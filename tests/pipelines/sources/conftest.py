"""What the tests of sources share: one small video, and a web server on this machine."""

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinemo.video import write_video
from pipelines import sources

Listed = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames, each brighter than the one before."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, np.repeat(np.arange(12, dtype=np.uint8) * 20, 64 * 64 * 3).reshape(12, 64, 64, 3))
    return path


@pytest.fixture
def listed() -> Listed:
    """The rows of a source, which `check` must have taken as well."""

    def rows(source: str | Path, **columns: str) -> list[dict[str, Any]]:
        sources.check(str(source), **columns)
        return [row for table in sources.iter_videos(str(source), **columns) for row in table.to_pylist()]

    return rows


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, with ranges or without; counts the bytes that it sends."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        data = path.read_bytes() if path.is_file() else b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(404 if not path.is_file() else 206 if asked and self.server.ranges else 200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                data = data[first : last + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.server.sent += len(data)
            self.wfile.write(data)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(params=[True], ids=["ranges"])
def web(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """The address of tmp_path on a web server, and the server: its `sent` counts bytes."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(tmp_path)))
    server.ranges, server.sent = request.param, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    server.server_close()
