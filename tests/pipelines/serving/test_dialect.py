"""What clients of other servers send, without Ray: spellings of fields, HEAD, CORS, pages after deleted videos."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from pipelines.serving.jobs.ids import new_id, time_of
from pipelines.serving.replica import Animator
from pipelines.serving.settings import ServeSettings
from tests.pipelines.serving.in_process import FAST, busy, png, send, serve, wait

BASE64 = base64.b64encode(png()).decode()
IN_LINES = "\n".join(BASE64[k : k + 76] for k in range(0, len(BASE64), 76))


def from_json(client: TestClient, **fields: Any) -> httpx.Response:
    body = json.dumps({"prompt": "a cat", "input_reference": BASE64, **FAST, **fields})  # ASCII, of any text
    return client.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(
    "image",
    [
        {"input_reference": BASE64},
        {"input_reference": IN_LINES},
        {"input_reference": f"data:image/png;base64,{BASE64}"},
        {"input_reference": [BASE64]},
        {"input_reference": {"image_url": f"data:image/png;base64,{BASE64}"}},
        {"input_reference": None, "image_reference": {"image_url": {"url": f"data:image/png;base64,{BASE64}"}}},
        {"input_reference": "", "image": f"data:image/png;base64,{IN_LINES}"},
    ],
    ids=range(7),
)
def test_every_spelling_of_the_image_is_taken(client: TestClient, idle: None, image: dict[str, Any]) -> None:
    assert from_json(client, **image).status_code == 200


def test_litellms_requests_are_answered(client: TestClient, idle: None) -> None:
    """As litellm 1.110.2 sent them, provider openai, seen on 2026-11-26: forms with these names and files, and JSON."""
    agent = {"User-Agent": "litellm/1.110.2", "Authorization": "Bearer none"}
    as_json = {**agent, "Content-Type": "application/json"}

    def made(answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code == 200, answer.text
        video = answer.json()
        assert (video["object"], video["error"], type(video["seconds"]), video["warnings"]) == ("video", None, str, [])
        return wait(client, video["id"])

    # video_generation(extra_body={"num_inference_steps": 2}), video_status, video_content
    form = {"model": "small", "prompt": "a cat", "seconds": "2", "user": "me", "num_inference_steps": "2", "seed": "3"}
    image = {"input_reference": ("input_reference.png", png(), "image/png")}
    first = made(client.post("/v1/videos", data=form, files=image, headers=agent))
    assert (first["status"], first["seconds"]) == ("completed", "2")
    mp4 = client.get(f"/v1/videos/{first['id']}/content", headers=agent).content
    thumbnail = client.get(f"/v1/videos/{first['id']}/content?variant=thumbnail", headers=agent).content
    assert (mp4[4:8], thumbnail[:4]) == (b"ftyp", b"RIFF")

    # video_remix, video_edit, video_extension, with the same extra_body; video_list
    of_this, prompt = {"video": {"id": first["id"]}}, {"prompt": "a dog", "num_inference_steps": 2}
    remixed = made(client.post(f"/v1/videos/{first['id']}/remix", content=json.dumps(prompt), headers=as_json))
    edited = made(client.post("/v1/videos/edits", content=json.dumps(prompt | of_this), headers=as_json))
    file = {"video": ("input_video.mp4", mp4, "video/mp4")}
    made(client.post("/v1/videos/edits", data=prompt, files=file, headers=agent))
    longer = {**prompt, "seconds": "1", **of_this}
    extended = made(client.post("/v1/videos/extensions", content=json.dumps(longer), headers=as_json))
    assert {one["remixed_from_video_id"] for one in (remixed, edited, extended)} == {first["id"]}
    page = client.get("/v1/videos", params={"limit": "2", "order": "desc"}, headers=agent).json()
    assert [one["id"] for one in page["data"]] == [page["first_id"], page["last_id"]]
    after = {"after": first["id"], "limit": "2", "order": "asc"}
    assert client.get("/v1/videos", params=after, headers=agent).json()["first_id"] == remixed["id"]

    # create_file, file_list, create_batch, list_batches, cancel_batch, file_delete
    lines = {"file": ("a.jsonl", b'{"a":1}\n', "application/octet-stream")}
    uploaded = client.post("/v1/files", data={"purpose": "batch"}, files=lines, headers=agent).json()["id"]
    assert [one["id"] for one in client.get("/v1/files", headers=agent).json()["data"]] == [uploaded]
    asked = {"completion_window": "24h", "endpoint": "/v1/videos", "input_file_id": uploaded, "metadata": None}
    batch = client.post("/v1/batches", content=json.dumps(asked), headers=as_json).json()["id"]
    assert client.post(f"/v1/batches/{batch}/cancel", headers=as_json).json()["id"] == batch
    assert [one["id"] for one in client.get("/v1/batches", headers=agent).json()["data"]] == [batch]
    while client.delete(f"/v1/files/{uploaded}", headers=as_json).status_code == 409:  # until the batch has ended
        time.sleep(0.05)


def test_the_image_may_be_in_a_list_of_a_form_and_two_are_refused(client: TestClient, idle: None) -> None:
    part = ("a.png", png(), "image/png")
    fields = {"prompt": "a cat", **FAST}
    assert client.post("/v1/videos", data=fields, files={"input_reference[]": part}).status_code == 200
    for files in ([("input_reference[]", part)] * 2, [("input_reference", part), ("image", part)]):
        refused = client.post("/v1/videos", data=fields, files=files)
        assert refused.status_code == 422
        assert "twice" in refused.text or "2 images" in refused.text
    both = from_json(client, input_reference=[BASE64, BASE64])
    assert (both.status_code, both.json()["error"]["param"]) == (422, "input_reference")


def test_empty_fields_and_nulls_are_as_if_absent(client: TestClient, idle: None) -> None:
    nothing = ("size", "seconds", "fps", "num_frames", "motion_bucket", "guidance_scale", "model", "user", "speed")
    form = send(client, **dict.fromkeys(nothing, ""))
    body = from_json(client, **dict.fromkeys((*nothing, "negative_prompt", "dct_init"), None))
    for answer in (form, body):
        assert answer.status_code == 200, answer.text
        assert (answer.json()["size"], answer.json()["motion_bucket"]) == ("96x64", 7)  # of the model's card
    assert from_json(client, prompt=None).json()["error"]["message"] == "prompt: is required"
    assert from_json(client, prompt="").status_code == 200


def test_width_and_height_n_and_extra_params_are_understood(client: TestClient, idle: None) -> None:
    asked = from_json(client, width=64, height=96, n=1, extra_params={"motion_bucket": 3})
    assert (asked.json()["size"], asked.json()["motion_bucket"], asked.json()["warnings"]) == ("64x96", 3, [])
    form = send(client, width="64", height="96", n="1", extra_params='{"motion_bucket": 4}')
    assert (form.json()["size"], form.json()["motion_bucket"]) == ("64x96", 4)
    for fields, param in (
        ({"width": 64}, "height"),
        ({"width": 64, "height": 96, "size": "96x64"}, "size"),
        ({"n": 2}, "n"),
        ({"extra_params": "[1]"}, "extra_params"),
        ({"extra_params": "[" * 100_000}, "extra_params"),
        ({"extra_params": {"prompt": "b"}}, "prompt"),
        ({"motion_buckets": 3}, "motion_buckets"),  # nearly a field: hardly meant to be ignored
        ({"width": 1, "height": 1, "size": "\ud800"}, "size"),  # half of a surrogate pair is no UTF-8
        ({"width": "\ud800", "height": 1, "size": "1x1"}, "size"),
        ({"prompt": "a \ud800"}, "prompt"),
        ({"model": "\ud800"}, "model"),
        ({"extra_params": {"negative_prompt": "\ud800"}}, "negative_prompt"),
    ):
        refused = from_json(client, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)


def test_unknown_fields_are_ignored_and_named_or_refused_where_strict(
    client: TestClient, idle: None, settings: ServeSettings, animator: Animator
) -> None:
    assert from_json(client, quality="hd").json()["warnings"] == ["quality: is not known here, and was ignored"]
    odd = from_json(client, **{"\ud800": 1}).json()["warnings"]  # was stored, and answered 500
    assert odd == ["?: is not known here, and was ignored"]
    many = from_json(client, **{f"{number:05}": 0 for number in range(100)})  # each is compared with every field's name
    assert (many.status_code, "at most 100" in many.json()["error"]["message"]) == (422, True)
    file = ("a.png", png(), "image/png")
    made = client.post("/v1/videos/sync", data={"prompt": "", "style": "x", **FAST}, files={"image": file})
    assert "style" in made.headers["x-warnings"]
    with serve(settings.model_copy(update={"strict": True}), animator) as client:
        refused = from_json(client, quality="hd")
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "quality")


def test_seconds_come_back_as_they_were_asked_for(client: TestClient, idle: None) -> None:
    for seconds in ("3", "7", "0.3"):
        assert from_json(client, seconds=seconds, num_frames=8).json()["seconds"] == seconds


@pytest.fixture
def open_to_all(settings: ServeSettings, animator: Animator) -> Iterator[TestClient]:
    changes = {"allow_origins": ["http://localhost:3000"], "aliases": {"sora-2": "small"}}
    with serve(settings.model_copy(update=changes), animator) as client:
        yield client


def test_a_page_of_an_allowed_origin_may_call(client: TestClient, open_to_all: TestClient) -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    allowed = open_to_all.options("/v1/videos", headers=asked)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, asked["Origin"])
    other = open_to_all.options("/v1/videos", headers=asked | {"Origin": "http://elsewhere"})
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=asked).headers


def test_pages_of_other_sites_may_not_call(client: TestClient, open_to_all: TestClient, idle: None) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Origin": "http://elsewhere"}
    refused = send(client, headers=elsewhere)  # a form needs no preflight
    assert (refused.status_code, "allow_origins" in refused.json()["error"]["message"]) == (403, True)
    assert client.get("/v1/videos").json()["data"] == []
    image = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Referer": "http://localhost:3000/a"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    insecure = {"Origin": "http://elsewhere"}  # to http://, browsers send no Sec-Fetch-Site
    allowed = {"Origin": "http://localhost:3000"}
    for service, headers, status in (
        (client, elsewhere, 403), (client, image, 403), (client, link, 200), (client, insecure, 403),
        (client, elsewhere | {"Sec-Fetch-Site": "same-origin"}, 200), (client, {"Origin": "http://testserver"}, 200),
        (open_to_all, elsewhere, 403), (open_to_all, image, 200), (open_to_all, allowed, 200),
        (open_to_all, elsewhere | allowed, 200), (open_to_all, insecure, 403), (client, {"Origin": "http://["}, 403),
        (client, elsewhere | {"Origin": "null", "Referer": "http://["}, 403),
        (client, {"Origin": "http://public", "X-Forwarded-Host": "public, inner"}, 200),  # a proxy that changes Host
    ):  # fmt: skip
        assert service.get("/v1/videos", headers=headers).status_code == status, headers
    assert client.post("/v1/videos", headers=link).status_code == 403  # a form that navigates


def test_a_model_is_found_by_its_name_and_by_an_alias(client: TestClient, open_to_all: TestClient, idle: None) -> None:
    assert client.get("/v1/models/small").json() == client.get("/v1/models").json()["data"][0]
    assert client.get("/v1/models/sora-2").json()["error"]["code"] == "model_not_found"
    assert open_to_all.get("/v1/models/sora-2").json()["id"] == "small"
    assert from_json(open_to_all, model="sora-2").json()["model"] == "small"
    with pytest.raises(ValueError, match="aliases: sora-2 is for large, which is not served; use small"):
        ServeSettings(models={"small": "x"}, aliases={"sora-2": "large"})


def test_head_answers_the_headers_of_get(client: TestClient, idle: None) -> None:
    video = wait(client, send(client).json()["id"])["id"]
    paths = ("/health/live", "/v1/models", "/v1/models/small", "/openapi.json", "/docs", f"/v1/videos/{video}/events")
    for path in (*paths, f"/v1/videos/{video}", f"/v1/videos/{video}/content"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b""), path
        for name in ("content-type", "content-length", "accept-ranges"):
            assert head.headers.get(name) == get.headers.get(name), path
    assert client.head("/v1/videos/video_0").status_code == 404
    assert client.head("/v1/videos/sync").status_code == 404  # no video has this id
    assert "head" not in client.get("/openapi.json").json()["paths"]["/health/live"]


def test_a_list_goes_on_after_a_video_that_was_deleted(client: TestClient, animator: Animator, idle: None) -> None:
    with busy(animator):
        ids = [send(client).json()["id"] for _ in range(3)]
        first = client.get("/v1/videos?limit=1&order=asc").json()
        assert (first["last_id"], first["has_more"]) == (ids[0], True)
        client.delete(f"/v1/videos/{ids[0]}")
        rest = client.get(f"/v1/videos?after={ids[0]}&order=asc").json()
        assert [video["id"] for video in rest["data"]] == ids[1:]
    never = client.get("/v1/videos?after=video_0")
    assert (never.status_code, never.json()["error"]["param"]) == (404, "after")


def test_an_id_tells_its_time_and_a_random_one_none() -> None:
    assert time_of(new_id(1_750_000_000.123)) == 1_750_000_000.123
    for other in ("video_" + "f" * 32, "video_" + "0" * 32, "video_x", "../etc"):
        with pytest.raises(KeyError):
            time_of(other)


def test_pictures_that_are_not_fetched_say_so(client: TestClient) -> None:
    for value in ("http://127.0.0.1/a.png", {"image_url": {"url": "s3://a/b.png"}}):
        refused = from_json(client, input_reference=value)
        assert "URLs are not fetched" in refused.json()["error"]["message"]
    assert from_json(client, input_reference={"file_id": "x"}).status_code == 422
