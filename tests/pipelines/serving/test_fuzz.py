"""Thousands of requests, those that the OpenAPI document allows and those that it does not: no answer is a 5xx."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from pipelines.serving.animator import Animator
from pipelines.serving.settings import Limits, ServeSettings
from tests.pipelines.serving.conftest import application, free_port, in_thread

pytestmark = pytest.mark.long


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    settings = ServeSettings(output=str(tmp_path), limits=Limits(max_queue=5, max_steps=1))
    animator = Animator(settings.model_dump(), "builtin:tiny", "builtin:tiny")
    port = free_port()
    config = uvicorn.Config(application(settings, animator), port=port, log_level="error")
    with in_thread(uvicorn.Server(config)):
        yield f"http://127.0.0.1:{port}"


def test_no_request_is_answered_with_a_5xx(address: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{address}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--mode", "all", "--max-examples", "400"]
    command += ["--seed", "1", "--continue-on-failure", "--exclude-path-regex", "events"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    lines = re.findall(r'cinemo_http_requests_total\{.*status="(\d+)"\} ([\d.]+)', httpx.get(f"{address}/metrics").text)
    answers = {status: sum(float(count) for found, count in lines if found == status) for status, _ in lines}
    assert sum(answers.values()) >= 2000, answers
    assert not [status for status in answers if status.startswith("5")], answers
