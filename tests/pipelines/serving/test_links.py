"""Images by URL: from allowed places only, wherever redirects and name servers lead, within size and time."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.http.links import check_allowed
from pipelines.serving.settings import Limits, ServeSettings
from tests.pipelines.serving.in_process import FAST, Stub, png, serve
from tests.pipelines.serving.receiver import Receiver


@pytest.fixture
def server() -> Iterator[Receiver]:
    """Images at /photos/, and redirects from /photos/to/PATH."""
    one, image = Receiver(), png()

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/photos/to/"):
            return 302, {"location": path.removeprefix("/photos/to/")}, b""
        if path == "/photos/large.png":
            return 200, {}, b"x" * 300_000
        return (200, {"content-type": "image/png"}, image) if path.endswith(".png") else (404, {}, b"")

    one.answer = answer
    one.start()
    yield one
    one.stop()


def settings_for(server: Receiver, folder: Path, **changes: Any) -> ServeSettings:
    images = {"allow": [f"{server.address}/photos/", f"http://photos.example.com:{server.port}/"], "timeout_s": 60.0}
    limits = Limits(max_bytes=200_000)
    given = {"image_urls": images, "private_hosts": ["127.0.0.1"], "limits": limits, "page": False, **changes}
    return ServeSettings(output=str(folder), **given)


def test_an_image_is_fetched_from_allowed_places_and_from_nowhere_else(
    tmp_path: Path, server: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look_up(*given: Any, **_: Any) -> Any:  # the name server of photos.example.com
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", look_up)
    settings = settings_for(server, tmp_path)
    photo = f"{server.address}/photos/cat.png"
    with serve(settings, Stub(settings)) as client:

        def ask(url: str, wrap: Any = lambda url: url, **fields: Any) -> Any:
            return client.post("/v1/videos", json={"prompt": "a cat", **FAST, "input_reference": wrap(url), **fields})

        for wrap in (lambda url: url, lambda url: {"image_url": url}, lambda url: [{"image_url": {"url": url}}]):
            answer = ask(photo, wrap)
            assert answer.status_code == 200, answer.text
        form = {"prompt": "a cat", **FAST}
        assert client.post("/v1/videos", data=form, files={"image": (None, photo)}).status_code == 200
        assert ask(f"{server.address}/photos/to/{photo}").status_code == 200
        fetched = len(server.received)
        for url, sentence in [
            (f"{server.address}/other/cat.png", "not among the places"),
            (f"{server.address}/photos/../other/cat.png", "has . or .."),
            (f"{server.address}/photos/%2e%2e/other/cat.png", "has . or .."),
            (f"http://127.0.0.1:{server.port + 1}/photos/cat.png", "not among the places"),
            ("http://169.254.169.254/latest/cat.png", "is a private address"),
            (f"http://a:b@127.0.0.1:{server.port}/photos/cat.png", "no user name"),
            (f"http://photos.example.com:{server.port}/cat.png", "the host is a private address"),
        ]:
            refused = ask(url)
            assert refused.status_code == 422, url
            assert refused.json()["error"]["param"] == "input_reference"
            assert sentence in refused.json()["error"]["message"], refused.text
        assert len(server.received) == fetched
        for path, sentence in [
            ("to/http://169.254.169.254/cat.png", "is a private address"),
            ("to//other/cat.png", "not among the places"),
            ("to/file:///etc/passwd", "should be http"),
            ("large.png", "has more than 200,000 bytes"),
            ("none", "answered 404"),
        ]:
            refused = ask(f"{server.address}/photos/{path}")
            assert refused.status_code == 422, path
            assert sentence in refused.json()["error"]["message"], refused.text
        assert not any(one.path.startswith("/other") for one in server.received)
        both = ask(photo, image=photo)
        assert "2 images are given" in both.json()["error"]["message"]


def test_a_server_that_does_not_answer_is_given_up_after_the_time_limit(tmp_path: Path, server: Receiver) -> None:
    over = threading.Event()

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        over.wait(60)
        return 200, {"content-type": "image/png"}, png()

    server.answer = answer
    images = {"allow": [f"{server.address}/photos/"], "timeout_s": 1.0}
    settings = settings_for(server, tmp_path, image_urls=images)
    with serve(settings, Stub(settings)) as client:
        refused = client.post("/v1/videos", json={"prompt": "", "input_reference": f"{server.address}/photos/slow.png"})
        over.set()
    assert refused.status_code == 422
    assert "no image within 1 s" in refused.json()["error"]["message"]


def test_redirects_end(tmp_path: Path, server: Receiver) -> None:
    server.answer = lambda path: (302, {"location": "/photos/again"}, b"")
    settings = settings_for(server, tmp_path, image_urls={"allow": [f"{server.address}/photos/"]})
    with serve(settings, Stub(settings)) as client:
        fields = {"prompt": "", "input_reference": f"{server.address}/photos/again"}
        assert "more than 3 redirects" in client.post("/v1/videos", json=fields).json()["error"]["message"]
    assert len(server.received) == 4


def test_places_are_compared_as_servers_understand_them() -> None:
    settings = ServeSettings(image_urls={"allow": ["https://images.example.com/photos/", "http://plain.example.com/"]})
    for url in ("https://IMAGES.example.com:443/photos/a.png?x=1", "http://plain.example.com/a"):
        assert check_allowed(url, settings).endswith(".example.com")
    for url in (
        "http://images.example.com/photos/a.png", "https://images.example.com/photosets/a.png",
        "https://images.example.com.evil.org/photos/a.png", "https://images.example.com:8443/photos/a.png",
        "https://plain.example.com/a", "https://images.example.com", "http://plain.example.com/a\\..\\b",
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"place|has \."):
            check_allowed(url, settings)
    for place in ("images.example.com", "https://images.example.com/photos", "ftp://a/", "https:///photos/"):
        with pytest.raises(ValueError, match=r"image_urls\.allow"):
            ServeSettings(image_urls={"allow": [place]})
