"""Videos made from videos over HTTP, without Ray: edits, remixes, extensions, loops, formats, previews."""

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cinemo import CinemoPipeline, longer
from cinemo.editing import edit_video
from cinemo.motion import motion_bucket, motion_score
from cinemo.provenance import read_mark
from cinemo.video import load_clip, probe
from pipelines.animate import videos
from pipelines.core import isolation, storage
from pipelines.serving.http import uploads
from pipelines.serving.jobs import tables
from pipelines.serving.replica import Animator
from pipelines.serving.settings import ServeSettings
from pipelines.serving.videos import results
from tests.pipelines.serving.in_process import FAST, application, listening, png, send, wait

SIZE = (64, 96)


@pytest.fixture(scope="module")
def moving() -> bytes:
    """A video of eight frames, twelve a second: a photo that is pushed to the right."""
    picture = np.asarray(Image.open(io.BytesIO(png((96, 64)))))
    return videos.video(np.stack([np.roll(picture, 4 * k, axis=1) for k in range(8)]), 12)


@pytest.fixture(scope="module")
def pipe(small: str) -> CinemoPipeline:
    pipe = CinemoPipeline.from_pretrained(small)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def post(client: TestClient, path: str, files: dict[str, bytes] | None = None, **fields: Any) -> Any:
    return client.post(f"/v1/videos{path}", data={"prompt": "a cat", **FAST, **fields}, files=files or {"x": b"x"})


def frames_of(client: TestClient, video: dict[str, Any], tmp_path: Path) -> np.ndarray:
    """The frames of a finished video, as a client gets them."""
    assert video["status"] == "completed", video
    path = tmp_path / f"made.{video['format']}"
    path.write_bytes(client.get(f"/v1/videos/{video['id']}/content").content)
    return load_clip(path, 0, 1, probe(path).num_frames, None).frames


def through(frames: np.ndarray) -> np.ndarray:
    """Frames as H.264 gives them back: it loses much of what an untrained model makes."""
    return videos.read(videos.video(frames, 8), len(frames)).astype(float)


def test_an_edit_is_what_edit_video_makes_of_the_video_and_the_image(
    client: TestClient, animator: Animator, idle: None, moving: bytes, pipe: CinemoPipeline, tmp_path: Path
) -> None:
    asked = post(client, "/edits", {"video": moving, "input_reference": png()}, source_prompt="a dog")
    assert asked.status_code == 200, asked.text
    source = load_clip(io.BytesIO(moving), 0, 3, 4, SIZE, shorten=True).frames
    assert asked.json()["motion_bucket"] == motion_bucket(motion_score(source))
    assert (asked.json()["guidance_scale"], asked.json()["dct_init"]) == (1.0, False)
    made = wait(client, asked.json()["id"])
    expected = edit_video(pipe, source, png(), "a cat", "a dog", made["motion_bucket"], num_inference_steps=2)
    assert np.abs(frames_of(client, made, tmp_path) - through(expected)).mean() < 3
    sidecar = storage.read_json(storage.join(animator.videos, results.name(made["id"], 1, "sidecar")))
    assert sidecar["request"]["source_prompt"] == "a dog"
    assert len(sidecar["request"]["video_digest"]) == 64


def test_a_remix_has_the_motion_of_its_video_and_another_prompt(client: TestClient, idle: None, tmp_path: Path) -> None:
    first = wait(client, send(client, format="gif", motion_bucket="13", size="64x96").json()["id"])
    api = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)  # type: ignore[arg-type]
    remixed = api.videos.remix(first["id"], prompt="a dog", extra_body={"num_inference_steps": 2})
    edited = post(client, "/edits", prompt="a dog", **{"video[id]": first["id"]})
    for one in (remixed.model_dump(), edited.json()):
        assert one["remixed_from_video_id"] == first["id"]
        made = wait(client, one["id"])
        assert (made["format"], made["size"], made["motion_bucket"], made["guidance_scale"]) == (
            "gif",
            "64x96",
            13,
            1.4,
        )
        assert frames_of(client, made, tmp_path).shape == (4, 96, 64, 3)


def test_a_video_of_an_adapter_names_it_and_its_remix_has_it_too(client: TestClient, idle: None) -> None:
    models = client.get("/v1/models").json()["data"]
    assert models[0]["loras"] == [{"id": "ink", "trigger_words": "ink wash"}, {"id": "rain", "trigger_words": None}]
    photo = base64.b64encode(png()).decode()
    first = {"prompt": "x", "input_reference": photo, "lora": ["ink:0.5", "rain"], "num_inference_steps": 1}
    made = wait(client, client.post("/v1/videos", json=first).json()["id"])
    assert (made["status"], made["lora"]) == ("completed", "ink:0.5, rain:1.0")
    remix = f"/v1/videos/{made['id']}/remix"
    inherited, without = (
        client.post(remix, json={"prompt": "y", "num_inference_steps": 1, **more}).json()
        for more in ({}, {"lora": "ink:0"})
    )
    assert (inherited["lora"], without["lora"]) == ("ink:0.5, rain:1.0", None)
    assert wait(client, inherited["id"])["status"] == wait(client, without["id"])["status"] == "completed"


def test_an_extension_goes_on_from_the_last_frame_and_has_the_whole(
    client: TestClient, idle: None, moving: bytes, pipe: CinemoPipeline, tmp_path: Path
) -> None:
    made = wait(client, post(client, "/extensions", {"video": moving}, seconds="0.34").json()["id"])
    assert (made["fps"], made["seconds"]) == (12, "1")  # 8 frames, and 4 more
    source = load_clip(io.BytesIO(moving), 0, 1, 8, SIZE).frames
    chain = longer.extend(
        pipe, source[-1], "a cat", 1, seed=7, height=64, width=96, exact=True, num_frames=4, num_inference_steps=2,
        guidance_scale=1.4,
    )  # fmt: skip
    whole = np.concatenate([source, chain[0][1:], chain[1]])[:12]
    assert np.abs(frames_of(client, made, tmp_path) - through(whole)).mean() < 3
    asked = {"prompt": "", "seconds": 0.5, "num_inference_steps": 1, "video": {"id": made["id"]}}
    made = wait(client, client.post("/v1/videos/extensions", json=asked).json()["id"])
    assert (made["seconds"], made["extend"], made["remixed_from_video_id"]) == ("1.5", 1, asked["video"]["id"])
    assert len(frames_of(client, made, tmp_path)) == 18


def test_an_unchanged_openai_client_edits_and_extends_a_file(client: TestClient, idle: None, moving: bytes) -> None:
    api = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)  # type: ignore[arg-type]
    body = {"num_inference_steps": 1, "fps": 2}
    edited = api.videos.edit(prompt="a dog", video=("in.mp4", moving), extra_body=body)
    longer = api.videos.extend(prompt="a dog", video=("in.mp4", moving), seconds="4", extra_body=body)
    assert [api.videos.poll(one.id, poll_interval_ms=100).status for one in (edited, longer)] == ["completed"] * 2
    assert longer.seconds == "8"  # 8 frames, and 8 more


def test_a_chain_and_a_loop_are_as_long_as_asked_and_play_without_a_seam(
    client: TestClient, idle: None, tmp_path: Path
) -> None:
    made = wait(client, send(client, extend="2", loop="true", seconds="2").json()["id"])
    frames = frames_of(client, made, tmp_path)
    assert len(frames) == 2 * (4 + 2 * 3) - 2
    assert (made["seconds"], made["fps"]) == ("2", 9)
    assert np.abs(frames[1].astype(int) - frames[-1]).mean() < 9  # as encoded; other frames differ by 40


@pytest.mark.parametrize("kind", ["mp4", "webm", "gif", "webp"])
def test_every_format_is_made_served_marked_and_deleted(
    client: TestClient, animator: Animator, idle: None, kind: str, tmp_path: Path
) -> None:
    files = {"input_reference": png()}
    sync = client.post("/v1/videos/sync", data={"prompt": "", "output_format": kind, **FAST}, files=files)
    name, media_type = sync.headers["x-video-id"], sync.headers["content-type"]
    assert media_type == {"mp4": "video/mp4", "webm": "video/webm"}.get(kind, f"image/{kind}")
    assert client.get(f"/v1/videos/{name}/content").content == sync.content
    assert frames_of(client, client.get(f"/v1/videos/{name}").json(), tmp_path).shape == (4, 64, 96, 3)
    assert read_mark(tmp_path / f"made.{kind}") == "trainedAlgorithmicMedia"
    thumbnail = client.get(f"/v1/videos/{name}/content?variant=thumbnail")
    assert Image.open(io.BytesIO(thumbnail.content)).size == (96, 64)
    assert len(list(Path(animator.videos).glob(f"{name}*"))) == 4
    assert results.attempts(animator.videos) >= {(name, 1)}
    client.delete(f"/v1/videos/{name}")
    assert not list(Path(animator.videos).glob(f"{name}*"))


def test_a_reference_video_gives_its_measured_motion(client: TestClient, idle: None, moving: bytes) -> None:
    made = post(client, "", {"input_reference": png(), "reference_video": moving})
    source = load_clip(io.BytesIO(moving), 0, 3, 4, SIZE, shorten=True).frames
    assert made.json()["motion_bucket"] == motion_bucket(motion_score(source))
    url = "data:video/mp4;base64," + base64.b64encode(moving).decode()
    picture = base64.b64encode(png()).decode()
    body = {"prompt": "", "input_reference": picture, "reference_video": url, **FAST}
    assert client.post("/v1/videos", json=body).json()["motion_bucket"] == made.json()["motion_bucket"]


def test_previews_come_between_the_events_where_they_are_asked_for(client: TestClient, idle: None) -> None:
    for asked, steps, expected in (("true", "12", True), ("false", "2", False)):
        video = send(client, preview=asked, num_inference_steps=steps).json()["id"]
        lines = client.get(f"/v1/videos/{video}/events").text.splitlines()
        names = [line[7:] for line in lines if line.startswith("event: ")]
        assert ("preview" in names) == expected
        assert names[-1] == "completed"
        for line in lines if expected else []:
            if '"video.preview"' in line:
                picture = base64.b64decode(json.loads(line[6:])["b64_json"])
                assert len(picture) < 10_000
                assert Image.open(io.BytesIO(picture)).size == (256, 171)


def test_what_cannot_be_edited_or_extended_is_refused_with_the_fields_name(
    client: TestClient, idle: None, moving: bytes
) -> None:
    wide = png((120, 64))
    for path, files, fields, param in (
        ("/edits", {"input_reference": png()}, {}, "video"),
        ("/edits", {"video": b"no video"}, {}, "video"),
        ("/edits", {"video": png()}, {}, "video"),
        ("/edits", {"video": moving[: len(moving) // 2]}, {}, "video"),
        ("/edits", {"video": moving, "input_reference": wide}, {}, "input_reference"),
        ("/edits", {"video": moving}, {"speed": "fast"}, "speed"),
        ("/edits", {"video": moving}, {"fit": "pad"}, "fit"),
        ("/edits", {"video": moving}, {"extend": "1"}, "extend"),
        ("/edits", {"video": moving, "reference_video": moving}, {}, "reference_video"),
        ("/extensions", {"video": moving, "input_reference": png()}, {}, "input_reference"),
        ("/extensions", {"video": moving}, {"seconds": "3600"}, "seconds"),
        ("", {"input_reference": png()}, {"source_prompt": "a"}, "source_prompt"),
        ("", {"input_reference": png()}, {"extend": "40"}, "extend"),
        ("", {"input_reference": png()}, {"format": "avi"}, "format"),
        ("", {"input_reference": png()}, {"format": "gif", "seconds": "0.07"}, "seconds"),
        ("", {"input_reference": png(), "reference_video": moving}, {"motion_bucket": "3"}, "motion_bucket"),
        ("", {"input_reference": png(), "reference_video": b"x"}, {}, "reference_video"),
    ):
        refused = post(client, path, files, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param), (path, fields, refused.text)
    for path in ("/video_0/remix", "/edits"):
        gone = client.post(f"/v1/videos{path}", json={"prompt": "", "video": {"id": "video_0"}})
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "video_not_found")


def test_a_repeated_remix_gives_the_first_video_though_its_source_is_deleted(client: TestClient, idle: None) -> None:
    source = wait(client, send(client).json()["id"])["id"]
    store = client.app.state.service.store  # type: ignore[attr-defined]

    def remix(prompt: str) -> Any:
        key = {"Idempotency-Key": "remix 1"}
        return client.post(f"/v1/videos/{source}/remix", json={"prompt": prompt, **FAST}, headers=key)

    first = remix("a dog").json()["id"]
    sent_digest = store.get(first).sent_digest
    store.database.change(tables.jobs.update().values(sent_digest=None))  # as earlier versions stored it
    assert remix("a dog").json()["id"] == first
    assert remix("a bird").status_code == 409
    store.database.change(tables.jobs.update().where(tables.jobs.c.id == first).values(sent_digest=sent_digest))
    assert client.delete(f"/v1/videos/{source}").status_code == 200
    assert remix("a dog").json()["id"] == first
    gone = remix("a bird")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "video_gone")
    never = client.post("/v1/videos/AAAA/remix", json={"prompt": ""})
    assert (never.status_code, never.json()["error"]["code"]) == (404, "video_not_found")


def test_a_video_that_is_not_completed_is_not_remixed(client: TestClient, animator: Animator, idle: None) -> None:
    waiting = send(client, num_inference_steps="900").json()["id"]
    refused = client.post(f"/v1/videos/{waiting}/remix", json={"prompt": ""})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "video_not_ready")


def test_videos_are_decoded_in_another_process(
    client: TestClient, idle: None, moving: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*_: Any) -> None:
        raise AssertionError("decoded in the ingress")

    called: list[str] = []
    call = isolation.Sandbox.call

    def watched(sandbox: isolation.Sandbox, function: Any, *arguments: Any, timeout: float) -> Any:
        called.append(function.__name__)
        return call(sandbox, function, *arguments, timeout=timeout)

    monkeypatch.setattr(uploads, "load_clip", here)
    monkeypatch.setattr(uploads, "shown_size", here)
    monkeypatch.setattr(isolation.Sandbox, "call", watched)
    assert post(client, "/edits", {"video": moving}, size="96x64").status_code == 200
    assert called == ["clip_of"]
    called.clear()
    tall = videos.video(videos.read(moving, 8).swapaxes(1, 2), 12)
    assert post(client, "/edits", {"video": tall}).json()["size"] == "64x96"
    assert called == ["shape_of", "clip_of"]


def test_curl_edits_a_video_and_follows_its_previews(
    settings: ServeSettings, animator: Animator, moving: bytes, tmp_path: Path
) -> None:
    (tmp_path / "in.mp4").write_bytes(moving)
    with listening(application(settings, animator)) as address:
        fields = ["prompt=a cat", "num_inference_steps=8", "format=webm", "preview=true", f"video=@{tmp_path}/in.mp4"]
        form = [part for field in fields for part in ("-F", field)]

        def curl(*arguments: str) -> bytes:
            return subprocess.run(["curl", "-sf", *arguments], check=True, capture_output=True, timeout=60).stdout

        video = json.loads(curl(f"{address}/v1/videos/edits", "-H", "X-Request-ID: from-curl", *form))["id"]
        events = curl("-N", f"{address}/v1/videos/{video}/events").decode()
        assert "event: preview" in events
        assert "event: completed" in events
        (tmp_path / "out.webm").write_bytes(curl(f"{address}/v1/videos/{video}/content"))
    assert probe(tmp_path / "out.webm").num_frames == 4
    sidecar = storage.read_json(storage.join(animator.videos, results.name(video, 1, "sidecar")))
    assert sidecar["request"]["request_id"] == "from-curl"
