"""A client of the batch API, without the OpenAI client's checks."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from tests.pipelines.serving.in_process import png

ENDED = ("completed", "failed", "cancelled")


def line(name: str, **changes: Any) -> dict[str, Any]:
    fields = {"prompt": "a cat", "input_reference": base64.b64encode(png()).decode(), "seed": 1} | changes.pop(
        "body", {}
    )
    return {"custom_id": name, "method": "POST", "url": "/v1/videos", "body": fields, **changes}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def until(happened: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (value := happened()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def upload(client: TestClient, data: bytes, **headers: str) -> Any:
    return client.post("/v1/files", files={"file": ("a.jsonl", data)}, data={"purpose": "batch"}, headers=headers)


def start(client: TestClient, data: bytes) -> str:
    file_id = upload(client, data).json()["id"]
    answer = client.post("/v1/batches", json={"input_file_id": file_id, "endpoint": "/v1/videos"})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def ended(client: TestClient, batch_id: str) -> dict[str, Any]:
    return until(lambda: (now := client.get(f"/v1/batches/{batch_id}").json())["status"] in ENDED and now)
