"""Bad input over HTTP, without Ray: the answer names the field, and the service goes on; good images of every kind."""

import asyncio
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pipelines.serving.http import uploads
from pipelines.serving.http.errors import ApiError
from pipelines.serving.settings import Limits
from pipelines.serving.videos.requests import check_work
from tests.pipelines.serving.in_process import png, send, wait

FIELD = Path(__file__).parents[2] / "field"


def picture(mode: str, size: tuple[int, int] = (64, 64), kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.png", png())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "fields", "status", "param"),
    [
        (b"", {}, 422, "input_reference"),
        (zip_file(), {}, 422, "input_reference"),
        (picture("RGB", (1, 1)), {}, 422, "input_reference"),
        (picture("1", (50_000, 50_000)), {}, 422, "input_reference"),
        (picture("L", (2_000_000, 8)), {}, 422, "input_reference"),
        (None, {"fit": "stretch"}, 422, "fit"),
        (png()[:200], {}, 422, "input_reference"),
        (bytes(3_000_001), {}, 413, "input_reference"),
        (None, {"prompt": "a\0b"}, 422, "prompt"),
        (None, {"prompt": "x" * 100_000}, 422, "prompt"),
        (None, {"model": "sora-2"}, 404, "model"),
        (None, {"size": "1280x720"}, 422, "size"),
        (None, {"size": "big"}, 422, "size"),
        (None, {"num_inference_steps": "-1"}, 422, "num_inference_steps"),
        (None, {"num_inference_steps": "2", "speed": "fast"}, 422, "speed"),
        (None, {"speed": "slow"}, 422, "speed"),
        (None, {"num_inference_steps": "901"}, 422, "num_inference_steps"),
        (None, {"num_frames": "16"}, 422, "num_frames"),
        (None, {"seconds": "4", "fps": "8"}, 422, "seconds"),
        (None, {"seconds": "NaN"}, 422, "seconds"),
        (None, {"guidance_scale": "inf"}, 422, "guidance_scale"),
        (None, {"motion_bucket": "20"}, 422, "motion_bucket"),
        (None, {"seed": str(2**63)}, 422, "seed"),
        (None, {"num_frame": "8"}, 422, "num_frame"),
        (None, {"lora": "sepia"}, 422, "lora"),
        (None, {"lora": "ink:much"}, 422, "lora"),
        (None, {"lora": "ink:inf"}, 422, "lora"),
        (None, {"lora": "ink,ink:2"}, 422, "lora"),
        (None, {"lora": "ink,other"}, 422, "lora"),
        (None, {"lora": ",".join(["ink"] * 9)}, 422, "lora"),
        (None, {"loras": "ink"}, 422, "loras"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:40],
)
def test_bad_requests_name_the_field_and_the_service_goes_on(
    client: TestClient, idle: None, image: bytes | None, fields: dict[str, str], status: int, param: str
) -> None:
    answer = send(client, image, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert answer.json()["error"]["message"]
    assert client.get("/v1/videos").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b'{"prompt": "a"}', "application/json", 422),
        (b'{"prompt": 3, "input_reference": "data:,"}', "application/json", 422),
        (b'{"prompt": "a", "input_reference": "http://127.0.0.1/a.png"}', "application/json", 422),
        (b'{"prompt": "a", "input_reference": "file:///etc/passwd"}', "application/json", 422),
        (b'{"prompt": "a", "input_reference": "data:image/png;base64,%%"}', "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"hello", "text/plain", 415),
        (b"--x\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na", "multipart/form-data; boundary=x", 400),
        (b"--x", "multipart/form-data", 400),
        (b"--x--", "multipart/form-data; boundary=x; charset=punycode", 415),  # its decoder takes hours for megabytes
        (b"--x--", 'multipart/form-data; boundary=x; Charset="Unicode_Escape"', 415),
        (b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n',
         "multipart/form-data; charset=ISO-8859-1; boundary=x", 422),  # as Java's HttpClient sends it: no image
    ],
    ids=range(15),
)  # fmt: skip
def test_bodies_that_are_none(client: TestClient, content: bytes, kind: str, status: int) -> None:
    for path in ("/v1/videos", "/v1/videos/sync"):
        answer = client.post(path, content=content, headers={"content-type": kind})
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "image",
    [
        picture("CMYK", kind="JPEG"),
        picture("I;16"),
        picture("RGBA"),
        picture("P", kind="GIF", save_all=True, append_images=[Image.new("P", (64, 64), 3)]),
        picture("RGB", kind="AVIF"),
        (FIELD / "ztxt.png").read_bytes(),
    ],
    ids=["cmyk", "16 bits", "alpha", "animated gif", "avif", "large text"],
)
def test_images_of_every_kind_are_taken(client: TestClient, idle: None, image: bytes) -> None:
    video = send(client, image, prompt="emoji 🐈 here", num_inference_steps="1")
    assert video.status_code == 200, video.text
    assert wait(client, video.json()["id"])["status"] == "completed"


def test_ids_that_are_none_and_pages_that_are_none(client: TestClient) -> None:
    for name in ("video_0", "..%2F..%2Fetc%2Fpasswd", "x" * 5000, "%00"):
        for path in (f"/v1/videos/{name}", f"/v1/videos/{name}/content", f"/v1/videos/{name}/events"):
            answer = client.get(path)
            assert answer.status_code == 404, answer.text
    assert client.get("/v1/videos?limit=0").json()["error"]["param"] == "limit"
    assert client.get("/v1/videos?order=up").status_code == 422
    assert client.get("/nowhere").json()["error"]["type"] == "not_found_error"
    assert client.put("/v1/videos").status_code == 405


def test_images_are_decoded_in_another_process_with_bounded_memory_two_at_a_time(
    client: TestClient, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: Any) -> None:
        raise AssertionError("decoded in the ingress")

    monkeypatch.setattr(uploads, "read_image", here)
    made = send(client, png())
    assert made.status_code == 200, made.text
    wait(client, made.json()["id"])
    small = uploads.UploadReader(1_000_000)
    monkeypatch.setattr(uploads, "_REST", -20_000_000)
    with pytest.raises(ApiError, match="cannot be decoded") as caught:
        asyncio.run(small.size(picture("I;16", (1000, 1000))))
    assert caught.value.status == 422
    assert small._threads._max_workers == 2


def test_pixels_frames_and_steps_together_are_bounded() -> None:
    paper = {"width": 512, "height": 320, "num_frames": 16, "num_inference_steps": 50}
    check_work(paper, Limits().max_work)
    with pytest.raises(
        ApiError, match=r"^size: 4096x4096 pixels x 64 frames x 100 steps are 107,374,182,400, and"
    ) as caught:
        check_work({"width": 4096, "height": 4096, "num_frames": 64, "num_inference_steps": 100}, Limits().max_work)
    assert caught.value.status == 422


def test_no_key_may_fill_the_queue_by_default() -> None:
    assert [Limits(max_queue=100).share(keys) for keys in (0, 1, 2, 3, 4, 50)] == [100, 100, 50, 33, 25, 25]
    assert Limits(max_queue=2).share(9) == 1


def test_an_adapter_that_cannot_be_used_is_a_sentence_with_those_that_can(client: TestClient) -> None:
    for text, words in (
        ("sepia", "lora: sepia is not served; use ink, rain"),
        ("other:0.5", "lora: other is an adapter of another model than small; use ink, rain"),
        ("ink:nan", "lora: lora 'ink:nan' should be PATH or PATH:weight"),
    ):
        assert words in send(client, lora=text).json()["error"]["message"]
