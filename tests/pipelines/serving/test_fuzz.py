"""Requests that the OpenAPI document allows and those that it does not, to every operation: no answer is a 5xx."""

import base64
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.serving import schema
from pipelines.serving.replica import Animator
from pipelines.serving.settings import Limits, ServeSettings
from tests.pipelines.serving import fuzz_photo
from tests.pipelines.serving.in_process import application, listening

pytestmark = pytest.mark.long


# Their bodies have the fields of /v1/videos, and take the same way.
ALIKE = ("/v1/videos/edits", "/v1/videos/extensions", "/v1/videos/{video_id}/remix")


def send_all(address: str, folder: Path, made: str) -> list[Path]:
    """Have schemathesis send what it makes of the document; its reports. Fails where it found a 5xx.

    Coverage sends the bounds and the violations of each parameter and field, fuzzing a few random ones of all at once,
    and stateful the ids that answers give. ALIKE are only fuzzed. made: id of a completed video.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SCHEMATHESIS_HOOKS": fuzz_photo.__name__}
    environment[fuzz_photo.MADE] = made
    for phases, which, most in (("fuzzing", "include", "5"), ("coverage,fuzzing,stateful", "exclude", "10")):
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json"]
        command += ["--checks", "not_a_server_error", "--phases", phases, "--mode", "all", "--max-examples", most]
        command += ["--seed", "1", "--continue-on-failure", "--report-ndjson-path", which]
        command += [f"--{which}-path={path}" for path in ALIKE]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return [folder / "include", folder / "exclude"]


def refused(reports: list[Path]) -> set[str]:
    """The fields and parameters that an answer of the service named as wrong."""
    found = set()

    def look(item: dict[str, Any]) -> dict[str, Any]:
        if "$base64" in item and '"param":' in (body := base64.b64decode(item["$base64"]).decode(errors="replace")):
            found.add(json.loads(body)["error"]["param"])
        return item

    for line in (line for report in reports for line in report.read_text().splitlines()):
        json.loads(line, object_hook=look)
    return found


def send_a_batch(address: str) -> None:
    """Ask for files and batches that are there and that are not: schemathesis does not always find ids of each kind."""
    with httpx.Client(base_url=f"{address}/v1") as client:
        upload = client.post("/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"}).json()["id"]
        batch = client.post("/batches", json={"input_file_id": upload, "endpoint": "/v1/videos"}).json()["id"]
        for file_id, batch_id in ((upload, batch), ("unknown", "unknown")):
            client.get(f"/files/{file_id}")
            client.get(f"/files/{file_id}/content")
            client.get("/batches", params={"after": batch_id})
            client.get(f"/batches/{batch_id}")
            client.post(f"/batches/{batch_id}/cancel")
            client.delete(f"/files/{file_id}")
        unused = client.post("/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"}).json()["id"]
        client.delete(f"/files/{unused}")  # the other one is refused while its batch has not ended
        client.post("/files", data={"purpose": "batch"})
        client.post("/batches", json={})


def test_no_request_is_answered_with_a_5xx(small: str, tmp_path: Path) -> None:
    settings = ServeSettings(
        model=small, output=str(tmp_path / "out"), limits=Limits(max_queue=5, max_steps=2, max_work=200_000)
    )
    animator = Animator(settings.model_dump(), "small", small)
    app, classes = application(settings, animator), defaultdict(set)

    def note(method: str, route: str, status: int, seconds: float) -> None:
        classes[method, route.replace(":path", "")].add(str(status)[0])  # as the document names it

    app.state.metrics.answered = note
    with listening(app) as address:
        files = {"input_reference": fuzz_photo.PHOTO}
        made = httpx.post(f"{address}/v1/videos/sync", data={"prompt": ""}, files=files, timeout=60).headers[
            "x-video-id"
        ]
        for path in ALIKE:  # so few random requests may all be wrong
            body = {"prompt": "", "video": {"id": made}}
            assert httpx.post(address + path.format(video_id=made), json=body, timeout=60).status_code == 200
        reports = send_all(address, tmp_path, made)
        send_a_batch(address)
        document = httpx.get(f"{address}/openapi.json").json()
    assert not [operation for operation, seen in classes.items() if "5" in seen]
    operations = {
        (method.upper(), path): has for path, item in document["paths"].items() for method, has in item.items()
    }
    for operation, has in operations.items():
        may_be_wrong = "requestBody" in has or any(one["in"] != "header" for one in has.get("parameters", []))
        assert classes[operation] == ({"2", "4"} if may_be_wrong else {"2"}), operation
    parameters = {
        one["name"] for has in operations.values() for one in has.get("parameters", []) if one["in"] == "query"
    }
    fields = {"input_reference", "video", "reference_video", *schema.VideoRequest.model_fields}
    assert refused(reports) >= fields | parameters - {"after"}, "were never refused"  # any text may be an `after`
