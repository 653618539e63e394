"""A video made from another one takes over its adapters; where the model lacks them, the refusal says what to do."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from pipelines.animate import videos
from pipelines.core import storage
from pipelines.serving import served_models
from pipelines.serving.api import create_app
from pipelines.serving.dispatch import Dispatcher
from pipelines.serving.metrics import Metrics
from pipelines.serving.service import Service
from pipelines.serving.settings import ServeSettings
from pipelines.serving.store import Store
from pipelines.serving.videos import results
from tests.pipelines.serving.in_process import Stub, send, wait


async def ready() -> list[str]:
    return []


def test_an_adapter_that_does_not_fit_the_requested_model_is_refused_with_a_remedy(
    tmp_path: Path, small: str, loras: dict[str, str]
) -> None:
    other = shutil.copytree(small, tmp_path / "other")
    with (other / "unet" / "config.json").open("a") as config:
        config.write("\n")  # another U-Net, by its fingerprint
    served = {"small": small, "other": str(other)}
    settings = ServeSettings(models=served, loras={"ink": loras["ink"]}, output=str(tmp_path), page=False)
    store, stub = Store(settings.store_url), Stub(settings)
    found = {name: served_models.look_up(name, place, settings.loras) for name, place in served.items()}
    service = Service(settings, store, Dispatcher(settings, store, dict.fromkeys(served, stub.animate)), found)
    with TestClient(create_app(service, Metrics(), ready)) as client:
        made = wait(client, send(client, model="small", lora="ink:0.5").json()["id"])["id"]
        frames = np.zeros((8, 64, 96, 3), np.uint8)
        place = storage.join(settings.place, "videos", results.name(made, 1, "video"))
        storage.put(place, videos.video(frames, 8))
        for path, given in ((f"/{made}/remix", {}), ("/edits", {"video": made}), ("/extensions", {"video": made})):
            fields = {"prompt": "x", "num_inference_steps": "2", **given}
            refused = client.post(f"/v1/videos{path}", json={**fields, "model": "other"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "model")
            assert refused.json()["error"]["message"] == (
                f"model: {made} was made with the adapter ink, which is not served for other; send lora empty, or "
                "leave out model to use small"
            )
            for remedy, lora in (({}, "ink:0.5"), ({"model": "other", "lora": ""}, None)):
                answer = client.post(f"/v1/videos{path}", json={**fields, **remedy})
                assert (answer.status_code, answer.json().get("lora")) == (200, lora), (path, remedy, answer.text)
            form = client.post(f"/v1/videos{path}", data={**fields, "model": "other", "lora": ""}, files={"x": b"x"})
            assert form.status_code == 200, form.text
        card = dataclasses.replace(found["other"].card, sizes=[(96, 64), (80, 80)], lengths=[16, 2])
        service.models = {**found, "other": dataclasses.replace(found["other"], card=card)}
        fields = {"prompt": "x", "num_inference_steps": "2", "lora": ""}
        for model, size, frames in (("small", "96x64", 4), ("other", "80x80", 2)):  # nearest in aspect; next in length
            made_of_it = client.post(f"/v1/videos/{made}/remix", json={**fields, "model": model}).json()
            assert (made_of_it["size"], made_of_it["num_frames"]) == (size, frames)
        given = client.post(f"/v1/videos/{made}/remix", json={**fields, "model": "other", "size": "96x64"})
        assert (given.status_code, given.json()["error"]["param"]) == (422, "size")  # a size in the request is refused
        for bad, status in (({"video": {"id": "video_\ud800"}}, 404), ({"video": made, "model": []}, 422)):
            body = json.dumps({"prompt": "x", **bad})  # httpx itself cannot encode half a surrogate pair
            answer = client.post("/v1/videos/edits", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == status, answer.text
        service.models = {**found, "small": dataclasses.replace(found["small"], loras={})}
        refused = client.post(f"/v1/videos/{made}/remix", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "lora")
        assert "the adapter ink, which is no longer served; send lora empty" in refused.json()["error"]["message"]
