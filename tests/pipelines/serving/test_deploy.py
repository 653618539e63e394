"""The service on real Ray Serve, of the configuration that users deploy: models, page, examples of docs/http-api.md."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from pydantic import ValidationError
from ray.serve.deployment import deployment_to_schema
from ray.serve.schema import ServeDeploySchema

from cinemo.video import probe
from pipelines.serving.deploy import build
from pipelines.serving.settings import ServeSettings
from tests.loras import write_adapter
from tests.pipelines.serving.conftest import free_port
from tests.pipelines.serving.in_process import png
from tests.pipelines.serving.service import send, until, wait

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "docs" / "deploy"


def test_settings_that_cannot_work_are_refused_before_anything_starts(tmp_path: Path, checkpoint: Path) -> None:
    other = write_adapter(tmp_path / "other", checkpoint)
    for given, sentence in [
        ({"model": "builtin:huge"}, "model builtin:huge is unknown"),
        ({"output": "s3://bucket/videos"}, "store has no default"),
        ({"ingress_replicas": 2}, "set store to postgresql://"),
        ({"replicas": {"min_replicas": 3}}, "min_replicas 3 is more than max_replicas 1"),
        ({"loras": {"ink": "no/such/adapter"}}, "lora no/such/adapter is neither a file"),
        ({"loras": {"ink:": "x"}}, "'ink:' cannot be named in a request"),
        ({"loras": {"ink": str(other)}}, "loras: ink .* is an adapter of none of builtin:tiny"),
        ({"replica": {}}, "Extra inputs are not permitted"),
    ]:
        with pytest.raises((ValueError, ValidationError), match=sentence):
            build(ServeSettings(**{"output": str(tmp_path), **given}))


@pytest.mark.parametrize("name", ["serve.yaml", "serve-models.yaml"])
def test_the_shipped_configurations_are_what_serve_and_the_service_take(name: str) -> None:
    (application,) = ServeDeploySchema(**yaml.safe_load((DEPLOY / name).read_text())).applications
    assert application.import_path == "serve_app:app"
    settings = ServeSettings(**application.args)
    assert list(settings.served) == {"serve.yaml": ["builtin:tiny"]}.get(name, ["champion", "candidate", "tiny"])


def test_a_new_version_answers_http_before_the_old_one_stops(tmp_path: Path) -> None:
    ingress = build(ServeSettings(output=str(tmp_path)))._bound_deployment
    assert deployment_to_schema(ingress).max_surge_percent == 100


@pytest.fixture(scope="module")
def address(ray_cluster: None, small: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`serve run` of the configuration that users deploy; a second model, the port and the output are the test's."""
    folder, port = tmp_path_factory.mktemp("service"), free_port()
    shipped = yaml.safe_load((DEPLOY / "serve.yaml").read_text())
    shipped["http_options"]["port"] = port
    given = shipped["applications"][0]["args"]
    given["models"] = {given.pop("model"): "builtin:tiny", "small": small}
    given["output"] = str(folder / "out")
    shipped["tracing_config"] = {"enabled": True, "sampling_ratio": 1.0}
    given["limits"] = given.get("limits", {}) | {"max_work": 10**11}
    given["replicas"] |= {"num_cpus": 0.5, "max_replicas": 1, "drain_s": 5}
    (folder / "config.yaml").write_text(yaml.safe_dump(shipped))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with (folder / "log").open("w") as log:
        command = [str(Path(sys.executable).parent / "serve"), "run", str(folder / "config.yaml")]
        service = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
            # In a background job of a shell SIGINT is ignored, and what it starts would never hear it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def is_ready() -> bool:
        assert service.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
        return False

    try:
        until(is_ready)
        yield f"http://127.0.0.1:{port}"
        service.send_signal(signal.SIGINT)
        service.wait(timeout=60)
    finally:
        if service.poll() is None:
            os.killpg(service.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_it_animates_with_each_model_and_shows_the_page_and_the_documentation(client: httpx.Client) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["builtin:tiny", "small"]
    ids = [send(client), send(client, model="small")]
    assert [video["model"] for video in wait(client, *ids)] == ["builtin:tiny", "small"]
    assert client.get("/health/ready").json()["status"] == "ready"
    assert client.get(f"/v1/videos/{ids[0]}/content").content[4:8] == b"ftyp"
    assert "Cinemo" in client.get("/docs").text
    page = client.get("/ui/")
    assert page.status_code == 200
    head = client.head(f"/v1/videos/{ids[0]}/content")
    assert (head.status_code, head.content, head.headers["content-type"]) == (200, b"", "video/mp4")
    check_watched(client, ids[0])
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def check_watched(client: httpx.Client, video_id: str) -> None:
    """Ray exports the service's metrics, a span names the job, and a request's id is in the answer and the logs."""
    (node,) = ray.nodes()
    exporter = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def exported() -> str:
        text = httpx.get(exporter).text
        return text if "ray_cinemo_videos_total{" in text and "ray_cinemo_jobs{" in text else ""

    text = until(exported, 60)
    (made,) = re.findall(r'ray_cinemo_videos_total\{[^}]*model="small"[^}]*\} ([\d.]+)', text)
    assert float(made) >= 1
    for name in ("http_requests_total", "http_seconds_bucket", "step_seconds_bucket", "result_seconds_count"):
        assert f"ray_cinemo_{name}{{" in text
    logs = Path(ray.worker._global_node.get_session_dir_path(), "logs", "serve")
    spans = until(lambda: [path for path in (logs / "spans").glob("*") if video_id in path.read_text()])
    assert spans
    answer = client.get("/v1/models", headers={"X-Request-ID": "from-a-client"})
    assert answer.headers["x-request-id"] == "from-a-client"
    assert until(lambda: any("from-a-client" in path.read_text() for path in logs.glob("proxy*.log")))


def test_an_ingress_that_starts_while_all_replicas_are_busy_is_ready(client: httpx.Client) -> None:
    """A call to a replica would wait behind its videos, and the load balancer would leave the ingress out."""
    wish = {"extend": "31", "num_inference_steps": "40"}  # minutes, in which no place at the replica gets free
    ids = [send(client, **wish) for _ in range(3)]  # one more than are sent to one replica
    until(lambda: client.get(f"/v1/videos/{ids[0]}").json()["status"] == "in_progress")
    [ingress] = [one for one in ray.util.list_named_actors(all_namespaces=True) if "#ingress#" in one["name"]]
    ray.kill(ray.get_actor(**ingress), no_restart=True)
    until(lambda: not [one for one in ray.util.list_named_actors(all_namespaces=True) if one == ingress])

    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return client.get("/health/ready").status_code == 200
        return False

    until(is_ready, 100)
    assert {client.get(f"/v1/videos/{one}").json()["status"] for one in ids} <= {"queued", "in_progress"}
    for one in ids:
        client.delete(f"/v1/videos/{one}").raise_for_status()


def test_a_client_that_leaves_cancels_its_synchronous_video(client: httpx.Client, address: str) -> None:
    def newest() -> dict[str, Any]:
        return next(iter(client.get("/v1/videos?limit=1").json()["data"]), {})

    async def begin_and_leave(known: str | None) -> dict[str, Any]:
        data, files = {"prompt": "", "num_inference_steps": "100"}, {"input_reference": png()}
        async with httpx.AsyncClient(base_url=address, timeout=None) as leaver:
            call = asyncio.create_task(leaver.post("/v1/videos/sync", data=data, files=files))
            while (video := await asyncio.to_thread(newest)).get("id") == known or video["status"] == "queued":
                await asyncio.sleep(0.1)
            assert not call.done()
            call.cancel()
        return video

    video = asyncio.run(begin_and_leave(newest().get("id")))
    (ended,) = wait(client, video["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "cancelled")


def test_the_examples_of_the_documentation_run_as_they_stand_there(address: str, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(png((384, 256)))
    text = (ROOT / "docs" / "http-api.md").read_text().replace("http://127.0.0.1:8000", address)
    shell, python = (re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("bash", "python"))
    for command in [*(["bash", "-ec", block] for block in shell), *([sys.executable, "-c", code] for code in python)]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for name, frames in (("left.mp4", 16), ("in.mp4", 16), ("up.mp4", 16), ("edited.webm", 16), ("longer.webm", 24)):
        assert probe(tmp_path / name).num_frames == frames
    assert "event: completed" in (tmp_path / "events.txt").read_text()
