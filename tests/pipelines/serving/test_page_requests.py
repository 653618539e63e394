"""Requests to the page as hostile clients send them: no files, no URLs; and a photo as a browser sends it."""

import base64
import inspect
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio.processing_utils
import httpx
import pytest
import safehttpx

from pipelines.serving.service import Service
from pipelines.serving.settings import ServeSettings
from tests.pipelines.serving.in_process import Stub, application, listening, png
from tests.pipelines.serving.receiver import Receiver


class PageClient:
    """Calls the page's functions as its JavaScript does."""

    def __init__(self, http: httpx.Client, service: Service) -> None:
        self.http, self.service = http, service
        config = http.get("/config").json()
        self.functions = config["dependencies"]
        self.components = {part["id"]: part for part in config["components"]}

    def inputs(self, function: dict[str, Any]) -> list[str]:
        """Types of the components whose values a function gets."""
        return [self.components[number]["type"] for number in function["inputs"]]

    def call(self, first: str, value: Any) -> str:
        """Events of a call of the function whose first input has this type, with this value for it."""
        function = next(found for found in self.functions if self.inputs(found)[:1] == [first])
        usual = [self.components[number]["props"].get("value") for number in function["inputs"][1:]]
        call = {"session_hash": uuid.uuid4().hex, "fn_index": function["id"], "data": [value, *usual]}
        assert self.http.post("/gradio_api/queue/join", json=call).status_code == 200
        return self.http.get("/gradio_api/queue/data", params={"session_hash": call["session_hash"]}).text


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageClient]:
    """A client of the page of a whole application, on a port of this process."""
    settings = ServeSettings(output=str(tmp_path_factory.mktemp("serve")))
    app = application(settings, Stub(settings), with_page=True)
    with listening(app) as address, httpx.Client(base_url=f"{address}/ui", timeout=60) as http:
        yield PageClient(http, app.state.service)


def file_data(**fields: Any) -> dict[str, Any]:
    """A file as gradio's client sends it."""
    return {"meta": {"_type": "gradio.FileData"}, **fields}


def test_no_file_of_the_service_is_read(page: PageClient, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(uuid.uuid4().hex)
    for component in ("dropdown", "image"):  # a file for any component was copied to where it could be downloaded
        events = page.call(component, file_data(path=str(secret)))
        assert "was not uploaded by a user" in events
    copies = Path(gradio.utils.get_upload_folder()).rglob(secret.name)
    assert secret.read_text() not in [copy.read_text() for copy in copies]
    assert "has_launched" in inspect.getsource(gradio.processing_utils._check_allowed)


def test_an_uploaded_photo_and_an_example_are_taken(page: PageClient) -> None:
    answer = page.http.post("/gradio_api/upload", files={"files": ("photo.png", png(), "image/png")})
    [path] = answer.json()
    events = page.call("image", file_data(path=path, orig_name="photo.png"))
    assert "Waiting for a free replica" in events
    assert page.http.get(f"/gradio_api/file={path}").content == png()
    assert "rocket.jpg" in page.call("dataset", 2)


def test_results_and_the_photo_are_shown(page: PageClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", gradio.utils.get_upload_folder())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # gradio shows everything in it
    picture = Path(page.service.videos, "result.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(png())

    async def file(*_: Any) -> Path:
        return picture

    monkeypatch.setattr(page.service, "file", file)
    [path] = page.http.post("/gradio_api/upload", files={"files": ("photo.png", png(), "image/png")}).json()
    events = page.call("image", file_data(path=path, orig_name="photo.png"))
    assert ("measured" in events, '"success":true' in events, '"success":false' in events) == (True, True, False)
    assert "result.png" in events


def test_no_url_is_fetched_and_no_image_decoded_in_this_process(
    page: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def public(_: str) -> str:  # as if the name of the server were that of a public address
        return "127.0.0.1"

    monkeypatch.setattr(safehttpx, "async_validate_url", public)
    server = Receiver()
    server.start()
    url = f"http://photos.example.com:{server.port}/{uuid.uuid4().hex}.png"  # gradio keeps what it has fetched
    for path in (f"file={url}", f"file/{url}", f"file={url.replace(':', '%3A').replace('/', '%2F')}", f"proxy={url}"):
        assert page.http.get(f"/gradio_api/{path}").status_code == 403, path
    for component in ("dropdown", "image"):
        assert "choose a file" in page.call(component, file_data(path=url))
    data = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    assert "choose a file" in page.call("image", file_data(path=None, url=data))
    server.stop()
    assert server.received == []


def test_forms_of_the_page_are_utf_8_and_no_program_runs_on_them(page: PageClient) -> None:
    for charset, status in (("punycode", 415), ("utf-7", 415), ("UTF-8", 200)):
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        answer = page.http.post("/gradio_api/upload", content=b"--x--", headers=headers)
        assert answer.status_code == status, answer.text
    video = {"video": ("a.mp4", b"a", "video/mp4")}  # gradio's recorder runs ffmpeg, without limits
    assert page.http.post("/gradio_api/process_recording", files=video).status_code == 403
