"""The HTTP API over a real replica, without Ray: an unchanged OpenAI client, bad input, limits, keys."""

import base64
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cinemo.video import sample_clip
from pipelines.serving.animator import Animator
from pipelines.serving.settings import Limits, ServeSettings
from pipelines.serving.store import Store
from tests.pipelines.serving.conftest import application, png

FAST = {"num_inference_steps": "2", "seed": "7"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServeSettings:
    limits = Limits(max_queue=3, max_bytes=3_000_000, max_pixels=1_000_000, max_prompt=300, max_steps=60)
    return ServeSettings(output=str(tmp_path_factory.mktemp("serve")), limits=limits, lease_s=3)


@pytest.fixture(scope="module")
def animator(settings: ServeSettings) -> Animator:
    return Animator(settings.model_dump(), "builtin:tiny", "builtin:tiny")


def serve(settings: ServeSettings, animator: Animator) -> TestClient:
    """A client of the whole application, with one replica in this process."""
    return TestClient(application(settings, animator), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(settings: ServeSettings, animator: Animator) -> Iterator[TestClient]:
    with serve(settings, animator) as client:
        yield client


@pytest.fixture
def idle(client: TestClient) -> None:
    """Nothing waits or runs from another test."""
    for video in client.get("/v1/videos?limit=100").json()["data"]:
        client.delete(f"/v1/videos/{video['id']}")


def send(client: TestClient, image: bytes | None = None, **fields: Any) -> Any:
    files = {"input_reference": ("photo.png", png() if image is None else image, "image/png")}
    headers = fields.pop("headers", {})
    return client.post("/v1/videos", data={"prompt": "a cat", **FAST, **fields}, files=files, headers=headers)


def wait(client: TestClient, video_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        video = client.get(f"/v1/videos/{video_id}").json()
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.05)
    pytest.fail(f"{video_id} did not end")


def test_an_unchanged_openai_client_creates_polls_lists_fetches_and_deletes(client: TestClient, idle: None) -> None:
    api = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)  # type: ignore[arg-type]
    video = api.videos.create(
        prompt="the camera zooms in", input_reference=("photo.png", png()), size="192x128",  # type: ignore[arg-type]
        seconds="4", extra_body={"motion_bucket": 15, "num_inference_steps": 2, "seed": 3},
    )  # fmt: skip
    assert (video.object, video.status, video.progress) == ("video", "queued", 0)
    video = api.videos.poll(video.id, poll_interval_ms=100)
    assert (video.status, video.progress, video.size, video.seconds) == ("completed", 100, "192x128", "4")
    assert video.expires_at == pytest.approx(time.time() + 86_400, abs=60)
    assert [listed.id for listed in api.videos.list(limit=5)] == [video.id]
    mp4 = api.videos.download_content(video.id).read()
    assert mp4[4:8] == b"ftyp"
    thumbnail = api.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(thumbnail)).size == (192, 128)
    sprites = api.videos.download_content(video.id, variant="spritesheet").read()
    assert Image.open(io.BytesIO(sprites)).size == (4 * 192, 4 * 128)
    assert [model.id for model in api.models.list()] == ["builtin:tiny"]
    assert api.videos.delete(video.id).deleted
    with pytest.raises(openai.APIStatusError) as gone:
        api.videos.retrieve(video.id)
    assert gone.value.status_code == 410


def test_videos_on_s3_are_written_served_with_ranges_and_deleted(
    animator: Animator, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = ServeSettings(output="s3://videos/made", store=f"sqlite:///{tmp_path}/jobs.db")
    monkeypatch.setattr(animator, "store", Store(remote.store_url))
    monkeypatch.setattr(animator, "videos", "s3://videos/made/videos")

    def names() -> list[str]:  # without folders, which pyarrow makes objects of
        bucket.invalidate_cache()
        return sorted(filter(None, (name.rpartition("/")[2] for name in bucket.find("videos/made"))))

    with serve(remote, animator) as client:
        video = wait(client, send(client).json()["id"])
        assert video["status"] == "completed", video
        assert names() == [f"{video['id']}-1.{ending}" for ending in ("jpg", "json", "mp4", "webp")]
        mp4 = client.get(f"/v1/videos/{video['id']}/content").content
        assert mp4 == bucket.cat(f"videos/made/videos/{video['id']}-1.mp4")
        part = client.get(f"/v1/videos/{video['id']}/content", headers={"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert client.delete(f"/v1/videos/{video['id']}").status_code == 200
        assert names() == []


def test_json_with_a_data_url_and_ranges_and_sync_give_the_same_video(
    client: TestClient, idle: None, tmp_path: Path
) -> None:
    def frames(mp4: bytes) -> np.ndarray:
        (tmp_path / "video.mp4").write_bytes(mp4)
        return sample_clip(tmp_path / "video.mp4", 0, 1, 16, (128, 192)).astype(float)

    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    wanted = {"prompt": "a cat", "num_inference_steps": 2, "seed": 7}
    one = client.post("/v1/videos", json={**wanted, "input_reference": url}).json()
    two = client.post("/v1/videos", json={**wanted, "input_reference": {"image_url": url}}).json()
    assert wait(client, one["id"])["measured_motion_bucket"] == wait(client, two["id"])["measured_motion_bucket"]
    mp4 = client.get(f"/v1/videos/{one['id']}/content").content
    other = client.get(f"/v1/videos/{two['id']}/content").content
    # The last bit of a sum may differ between calls, and H.264 makes a little more of it; another seed makes 20.
    assert np.abs(frames(other) - frames(mp4)).mean() < 2
    part = client.get(f"/v1/videos/{one['id']}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    files = {"input_reference": png()}
    sync = client.post("/v1/videos/sync", data={"prompt": "a cat", **FAST}, files=files)
    assert (sync.status_code, sync.headers["content-type"]) == (200, "video/mp4")
    assert np.abs(frames(sync.content) - frames(mp4)).mean() < 2
    assert client.get(f"/v1/videos/{sync.headers['x-video-id']}").json()["status"] == "completed"


def test_events_tell_every_change_to_the_end(client: TestClient, idle: None) -> None:
    video = send(client, num_inference_steps="4").json()
    seen = []
    with client.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if line.startswith("data:"):
                seen.append(json.loads(line.removeprefix("data:")))
    assert seen[-1]["status"] == "completed"
    assert [one["progress"] for one in seen] == sorted(one["progress"] for one in seen)
    assert len(seen) >= 3


def test_a_key_gives_the_first_video_again_and_another_request_a_conflict(client: TestClient, idle: None) -> None:
    key = {"Idempotency-Key": "order 17"}
    first, second = send(client, headers=key), send(client, headers=key)
    assert first.json()["id"] == second.json()["id"]
    other = send(client, headers=key, seed="8")
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")


def test_past_the_queue_it_says_when_to_come_again_and_the_first_are_made(client: TestClient, idle: None) -> None:
    answers = [send(client, num_inference_steps="8") for _ in range(8)]
    codes = [answer.status_code for answer in answers]
    assert codes.count(200) == 3
    assert codes.count(429) == 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    for answer in answers:
        if answer.status_code == 200:
            assert wait(client, answer.json()["id"])["status"] == "completed"
    assert send(client).status_code == 200


def test_a_running_video_is_deleted_at_once_and_its_replica_is_free_for_the_next(
    client: TestClient, idle: None
) -> None:
    video = send(client, num_inference_steps="60").json()
    early = client.get(f"/v1/videos/{video['id']}/content")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "video_not_ready")
    while client.get(f"/v1/videos/{video['id']}").json()["progress"] < 3:
        time.sleep(0.05)
    began = time.monotonic()
    assert client.delete(f"/v1/videos/{video['id']}").json() == {
        "id": video["id"], "object": "video.deleted", "deleted": True
    }  # fmt: skip
    assert client.delete(f"/v1/videos/{video['id']}").status_code == 410
    assert wait(client, send(client, num_inference_steps="1").json()["id"])["status"] == "completed"
    assert time.monotonic() - began < 12  # the 60 steps would take thirty seconds


def test_a_job_whose_dispatcher_died_is_begun_again_and_finished_once(
    settings: ServeSettings, animator: Animator, client: TestClient, idle: None
) -> None:
    with serve(settings, animator) as other:
        video = send(other, num_inference_steps="20").json()
    assert wait(client, video["id"])["status"] == "completed"  # by the ingress that is left, once the lease ran out
    assert len(list(Path(settings.output, "videos").glob(f"{video['id']}-*.mp4"))) == 1


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
        (None, {"num_inference_steps": "61"}, 422, "num_inference_steps"),
        (None, {"num_frames": "17"}, 422, "num_frames"),
        (None, {"seconds": "4", "fps": "8"}, 422, "seconds"),
        (None, {"seconds": "NaN"}, 422, "seconds"),
        (None, {"guidance_scale": "inf"}, 422, "guidance_scale"),
        (None, {"motion_bucket": "20"}, 422, "motion_bucket"),
        (None, {"seed": str(2**63)}, 422, "seed"),
        (None, {"sampler": "euler"}, 422, "sampler"),
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
    ],
    ids=range(12),
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
    ],
    ids=["cmyk", "16 bits", "alpha", "animated gif"],
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


def test_each_key_sees_its_own_videos_only(
    settings: ServeSettings, animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CINEMO_API_KEYS", "secret-a, secret-b")
    with serve(settings, animator) as client:
        a, b, wrong = ({"Authorization": f"Bearer {key}"} for key in ("secret-a", "secret-b", "secret-c"))
        assert send(client).status_code == 401
        assert send(client, headers=wrong).json()["error"]["type"] == "authentication_error"
        video = send(client, headers=a).json()["id"]
        assert client.get(f"/v1/videos/{video}", headers=a).status_code == 200
        assert client.get(f"/v1/videos/{video}", headers=b).status_code == 404
        assert client.delete(f"/v1/videos/{video}", headers=b).status_code == 404
        assert client.get("/v1/videos", headers=b).json()["data"] == []
        assert client.delete(f"/v1/videos/{video}", headers=a).status_code == 200
        assert client.get("/health/live").status_code == 200


def test_prometheus_is_told(client: TestClient, idle: None) -> None:
    wait(client, send(client, num_inference_steps="1").json()["id"])
    text = client.get("/metrics").text
    for name in ("cinemo_videos_total{", 'cinemo_jobs{status="completed"} 1', "cinemo_step_seconds_count",
                 "cinemo_http_requests_total{"):  # fmt: skip
        assert name in text, text
    assert client.get("/health/ready").json()["jobs"]["completed"] == 1


def test_expired_videos_go_with_their_files(animator: Animator, settings: ServeSettings, tmp_path: Path) -> None:
    brief = settings.model_copy(update={"output": str(tmp_path), "ttl_s": 0.5, "lease_s": 0.6})
    with serve(brief, Animator(brief.model_dump(), "builtin:tiny", "builtin:tiny")) as client:
        video = send(client, num_inference_steps="1").json()["id"]
        deadline = time.monotonic() + 30
        while client.get(f"/v1/videos/{video}").status_code != 410:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.get(f"/v1/videos/{video}/content").status_code == 410
        time.sleep(0.5)
        assert not list((tmp_path / "videos").iterdir())


def test_many_at_once_are_all_answered(client: TestClient, idle: None) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(send(client).status_code)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(codes) == 30
    assert set(codes) <= {200, 429}
