"""The HTTP API over a real replica, without Ray: an unchanged OpenAI client, every way to ask, limits, keys."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cinemo.video import sample_clip
from pipelines.serving import service
from pipelines.serving.http import api_keys
from pipelines.serving.replica import Animator
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from tests.browser import until
from tests.pipelines.serving.in_process import FAST, application, busy, listening, png, send, serve, wait, watch


def test_an_unchanged_openai_client_creates_polls_lists_fetches_and_deletes(client: TestClient, idle: None) -> None:
    api = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)  # type: ignore[arg-type]
    video = api.videos.create(
        prompt="the camera zooms in", input_reference=("photo.png", png()), size="96x64",  # type: ignore[arg-type]
        seconds="4", extra_body={"motion_bucket": 15, "num_inference_steps": 2, "num_frames": 8, "seed": 3},
    )  # fmt: skip
    assert (video.object, video.status, video.progress) == ("video", "queued", 0)
    video = api.videos.poll(video.id, poll_interval_ms=100)
    assert (video.status, video.progress, video.size, video.seconds) == ("completed", 100, "96x64", "4")
    assert video.expires_at == pytest.approx(time.time() + 86_400, abs=60)
    assert [listed.id for listed in api.videos.list(limit=5)] == [video.id]
    mp4 = api.videos.download_content(video.id).read()
    assert mp4[4:8] == b"ftyp"
    thumbnail = api.videos.download_content(video.id, variant="thumbnail").read()
    assert Image.open(io.BytesIO(thumbnail)).size == (96, 64)
    sprites = api.videos.download_content(video.id, variant="spritesheet").read()
    assert Image.open(io.BytesIO(sprites)).size == (4 * 96, 2 * 64)
    assert [model.id for model in api.models.list()] == ["small"]
    assert api.videos.delete(video.id).deleted
    with pytest.raises(openai.APIStatusError) as gone:
        api.videos.retrieve(video.id)
    assert isinstance(gone.value, openai.NotFoundError)


def test_videos_on_s3_are_written_served_with_ranges_and_deleted(
    settings: ServeSettings, animator: Animator, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = settings.model_copy(update={"output": "s3://videos/made", "store": f"sqlite:///{tmp_path}/jobs.db"})
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
        copies = client.app.state.service.copies  # type: ignore[attr-defined]
        assert [path.suffix for path in copies.iterdir()] == [".mp4"]
        assert client.delete(f"/v1/videos/{video['id']}").status_code == 200
        assert names() == [path.name for path in copies.iterdir()] == []
        monkeypatch.setattr(service, "COPY_KEPT_S", 0.5)  # one that expires leaves nothing either
        video = wait(client, send(client).json()["id"])
        assert client.get(f"/v1/videos/{video['id']}/content?variant=thumbnail").status_code == 200
        deadline = time.monotonic() + 20
        while list(copies.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        bucket.rm("videos/made/videos", recursive=True)
        assert client.get(f"/v1/videos/{video['id']}/content").json()["error"]["code"] == "video_gone"


def test_json_with_a_data_url_and_ranges_and_sync_give_the_same_video(
    client: TestClient, idle: None, tmp_path: Path
) -> None:
    def frames(mp4: bytes) -> np.ndarray:
        (tmp_path / "video.mp4").write_bytes(mp4)
        return sample_clip(tmp_path / "video.mp4", 0, 1, 4, (64, 96)).astype(float)

    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    wanted = {"prompt": "a cat", "num_inference_steps": 2, "seed": 7}
    one = client.post("/v1/videos", json={**wanted, "input_reference": url}).json()
    two = client.post("/v1/videos", json={**wanted, "input_reference": {"image_url": url}}).json()
    assert wait(client, one["id"])["measured_motion_bucket"] == wait(client, two["id"])["measured_motion_bucket"]
    mp4 = client.get(f"/v1/videos/{one['id']}/content").content
    other = client.get(f"/v1/videos/{two['id']}/content").content
    # The last bit of a sum may differ between calls, and H.264 makes a little more of it; another seed makes 40.
    assert np.abs(frames(other) - frames(mp4)).mean() < 2
    part = client.get(f"/v1/videos/{one['id']}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    files = {"input_reference": png()}
    sync = client.post("/v1/videos/sync", data={"prompt": "a cat", **FAST}, files=files)
    assert (sync.status_code, sync.headers["content-type"]) == (200, "video/mp4")
    assert np.abs(frames(sync.content) - frames(mp4)).mean() < 2
    assert client.get(f"/v1/videos/{sync.headers['x-video-id']}").json()["status"] == "completed"


def test_a_portrait_is_cropped_padded_or_gets_the_nearest_size_and_what_is_cut_away_is_said(
    client: TestClient, idle: None
) -> None:
    portrait = (Path(__file__).parents[2] / "field" / "portrait.jpg").read_bytes()
    found = {}
    for size, fit in (("96x64", "crop"), ("96x64", "pad"), ("auto", "crop"), (None, "auto")):
        asked = {"fit": fit} if size is None else {"fit": fit, "size": size}
        video = wait(client, send(client, portrait, num_inference_steps="1", **asked).json()["id"])
        assert video["status"] == "completed", video
        found[size, fit] = (video["size"], video["fit"], video["cut_away"])
    assert found["96x64", "crop"] == ("96x64", "crop", pytest.approx(0.5556, abs=1e-4))
    assert found["96x64", "pad"] == ("96x64", "pad", 0)
    assert found["auto", "crop"] == found[None, "auto"] == ("64x96", "crop", 0)


def test_events_tell_every_change_to_the_end(settings: ServeSettings, animator: Animator, idle: None) -> None:
    seen = []
    app = application(settings, animator)
    with watch(animator) as steps, listening(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        steps.hold()
        video = send(client, num_inference_steps="4").json()
        with client.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    seen.append(json.loads(line.removeprefix("data:")))
                    if seen[-1]["status"] == "in_progress":
                        steps.go_on(one=True)
    assert [one["progress"] for one in seen if one["status"] == "in_progress"] == [0, 25, 50, 75, 99]
    assert (seen[-1]["status"], seen[-1]["progress"]) == ("completed", 100)


def test_many_event_streams_share_one_query(
    settings: ServeSettings, animator: Animator, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries: list[list[str]] = []
    get_all = Store.get_all
    monkeypatch.setattr(Store, "get_all", lambda store, ids: queries.append(list(ids)) or get_all(store, ids))
    with (
        listening(application(settings, animator)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        busy(animator),
        ThreadPoolExecutor(20) as threads,
    ):
        ids = [send(client).json()["id"] for _ in range(2)]
        streams = [threads.submit(client.get, f"/v1/videos/{ids[k % 2]}/events") for k in range(20)]
        began = time.monotonic()
        time.sleep(3)
        followed = [sorted(query) for query in queries if query]
        elapsed_s = time.monotonic() - began
        deleted = [client.delete(f"/v1/videos/{job_id}").status_code for job_id in ids]
        texts = [stream.result().text for stream in streams]
    assert deleted == [200, 200]
    assert all("event: deleted" in text for text in texts)
    assert len(followed) <= elapsed_s / 0.2 + 25  # each opening asks once; streams of their own: about 300 in 3 s
    assert sorted(ids) in followed


def test_a_key_gives_the_first_video_again_and_another_request_a_conflict(client: TestClient, idle: None) -> None:
    key = {"Idempotency-Key": "order 17"}
    first, second = send(client, headers=key), send(client, headers=key)
    assert first.json()["id"] == second.json()["id"]
    other = send(client, headers=key, seed="8")
    assert (other.status_code, other.json()["error"]["param"]) == (409, "Idempotency-Key")
    key = {"Idempotency-Key": "order 18"}  # earlier versions stored bucket 10 for a request without one
    assert send(client, headers=key, motion_bucket="10").json()["id"] == send(client, headers=key).json()["id"]


def test_a_synchronous_request_with_a_key_is_repeated_and_gives_the_first_video(client: TestClient, idle: None) -> None:
    headers, files = {"Idempotency-Key": "sync-1"}, {"input_reference": ("a.png", png(), "image/png")}
    data = {"prompt": "the camera pans left", **FAST}
    first, again = (client.post("/v1/videos/sync", data=data, files=files, headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.headers["X-Video-Id"] == again.headers["X-Video-Id"]
    assert first.content == again.content


def test_past_the_queue_it_says_when_to_come_again_and_the_first_are_made(
    client: TestClient, animator: Animator, idle: None
) -> None:
    with busy(animator):
        answers = [send(client) for _ in range(8)]
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
    client: TestClient, animator: Animator, idle: None
) -> None:
    with watch(animator) as steps:
        video = send(client, num_inference_steps="900").json()
        early = client.get(f"/v1/videos/{video['id']}/content")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "video_not_ready")
        while client.get(f"/v1/videos/{video['id']}").json()["progress"] < 2:
            time.sleep(0.05)
        steps.hold()
        assert client.delete(f"/v1/videos/{video['id']}").json() == {
            "id": video["id"], "object": "video.deleted", "deleted": True
        }  # fmt: skip
        assert client.delete(f"/v1/videos/{video['id']}").status_code == 404
        steps.go_on()
        assert wait(client, send(client, num_inference_steps="1").json()["id"])["status"] == "completed"
    answers = steps.answers(video["id"])
    assert answers == [True] * (len(answers) - 1) + [False]  # its replica ended at the next step
    assert len(answers) < 900


def test_a_job_whose_dispatcher_died_is_begun_again_and_finished_once(
    settings: ServeSettings, animator: Animator, client: TestClient, idle: None
) -> None:
    store = Store(settings.store_url)
    with busy(animator), serve(settings, animator) as other:
        video = send(other).json()
        first = store.get(video["id"])
    assert wait(client, video["id"])["status"] == "completed"  # by the ingress that is left, once the lease ran out
    last = store.get(video["id"])
    assert first is not None
    assert last is not None
    assert last.lease_owner != first.lease_owner
    assert len(list(Path(settings.output, "videos").glob(f"{video['id']}-*.mp4"))) == 1


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
        assert (
            client.get(f"/v1/videos/{video}", auth=("any", "secret-a")).status_code == 401
        )  # browsers send it for others
        assert client.delete(f"/v1/videos/{video}", headers=a).status_code == 200
        assert client.get("/health/live").status_code == 200


def test_a_service_that_requires_keys_does_not_start_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CINEMO_API_KEYS", " , ")
    with pytest.raises(ValueError, match="require_keys: CINEMO_API_KEYS is empty; set it"):
        api_keys.from_environment(ServeSettings(require_keys=True))
    assert api_keys.from_environment(ServeSettings()) == []


def test_the_page_is_behind_the_keys_and_within_the_limits(
    settings: ServeSettings, animator: Animator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's own routes took uploads and calls of any size from anybody, and handed out videos."""
    monkeypatch.setenv("CINEMO_API_KEYS", "secret-a")
    with TestClient(application(settings, animator, with_page=True)) as client:
        for path in ("/ui", "/ui/", "/ui/config", "/ui/gradio_api/upload", "/ui/gradio_api/file=/etc/passwd"):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["WWW-Authenticate"].startswith("Basic")
        assert client.post("/ui/gradio_api/queue/join", json={}).status_code == 401
        page = client.get("/ui/", auth=("any", "secret-a"))
        assert page.status_code == 200
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        large = b" " * (settings.limits.max_bytes + 1)
        for path in ("/ui/gradio_api/queue/join", "/ui/gradio_api/upload"):
            assert client.post(path, content=large, auth=("any", "secret-a")).status_code == 413
            assert client.post(path, content=iter([b"{}"]), auth=("any", "secret-a")).status_code == 411
    with TestClient(application(settings, animator, with_page=True), root_path="/prefix") as client:
        assert client.get("/prefix/ui/config").status_code == 401


def test_numbers_of_answers_steps_and_videos_are_recorded(
    client: TestClient, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray exports them (test_deploy.py); the number of jobs can be read from the service too."""
    metrics, seen = client.app.state.metrics, list[Any]()  # type: ignore[attr-defined]
    for name, method in (("requests", "inc"), ("videos", "inc"), ("step", "observe"), ("result", "observe")):
        monkeypatch.setattr(getattr(metrics, name), method, lambda *_, name=name, tags=None: seen.append((name, tags)))
    wait(client, send(client, num_inference_steps="1").json()["id"])
    until(lambda: {"step", "result"} <= {name for name, _ in seen})  # recorded after the database has the video
    assert ("requests", {"method": "POST", "route": "/v1/videos", "status": "200"}) in seen
    assert ("videos", {"model": "small", "outcome": "completed"}) in seen
    until(lambda: 'cinemo_jobs{status="completed"} 1' in client.get("/metrics").text)  # counts are kept a while
    assert client.get("/health/ready").json()["jobs"]["completed"] == 1


def test_expired_videos_go_with_their_files(settings: ServeSettings, small: str, tmp_path: Path) -> None:
    brief = settings.model_copy(update={"output": str(tmp_path), "ttl_s": 0.5, "lease_s": 0.6})
    with serve(brief, Animator(brief.model_dump(), "small", small)) as client:
        video = send(client, num_inference_steps="1").json()["id"]
        deadline = time.monotonic() + 30
        while client.get(f"/v1/videos/{video}").status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.get(f"/v1/videos/{video}/content").status_code == 404
        while list((tmp_path / "videos").iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_many_at_once_are_all_answered(client: TestClient, idle: None) -> None:
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(send(client).status_code)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(codes) == 30
    assert set(codes) <= {200, 429}
