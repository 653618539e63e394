"""docs/http-api.md tells the truth: its examples run against a service of docs/deploy/serve.yaml."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from cinemo.video import probe
from tests.pipelines.serving.conftest import free_port, png

pytestmark = [pytest.mark.ray, pytest.mark.long]
ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "http-api.md").read_text()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of its own, of the configuration that users deploy, on a free port, with an output of its own."""
    folder, port = tmp_path_factory.mktemp("service"), free_port()
    shipped = yaml.safe_load((ROOT / "docs" / "deploy" / "serve.yaml").read_text())
    shipped["http_options"]["port"] = port
    shipped["applications"][0]["args"]["output"] = str(folder / "out")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(shipped))
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "PYTHONPATH")}
    with (folder / "log").open("w") as log:
        service = subprocess.Popen(
            [str(Path(sys.executable).parent / "serve"), "run", str(config)],
            cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + 240
    while True:
        assert service.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    yield f"http://127.0.0.1:{port}"
    service.send_signal(signal.SIGINT)
    try:
        service.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(service.pid, signal.SIGKILL)


def test_the_examples_of_the_documentation_run_as_they_stand_there(address: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(png((384, 256)))
    text = TEXT.replace("http://127.0.0.1:8000", address)
    shell, python = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("bash", "python"))
    for command in [*(["bash", "-ec", block] for block in shell), *([sys.executable, "-c", code] for code in python)]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for name in ("left.mp4", "in.mp4", "up.mp4"):
        assert probe(tmp_path / name).num_frames == 16
    assert "event: completed" in (tmp_path / "events.txt").read_text()
