"""The service on real Ray Serve: deployed, used over HTTP, and its processes killed under it."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from pipelines.serving.deploy import build
from pipelines.serving.settings import Replicas, ServeSettings
from tests.pipelines.serving.conftest import png
from tests.pipelines.serving.service import deployed, processes, send, wait

pytestmark = pytest.mark.ray
DEPLOY = Path(__file__).parents[3] / "docs" / "deploy"


def test_settings_that_cannot_work_are_refused_before_anything_starts(tmp_path: Path) -> None:
    for given, sentence in [
        ({"model": "builtin:huge"}, "model builtin:huge is unknown"),
        ({"output": "s3://bucket/videos"}, "store has no default"),
        ({"ingress_replicas": 2}, "set store to postgresql://"),
        ({"replicas": {"min_replicas": 3}}, "min_replicas 3 is more than max_replicas 1"),
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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def client(ray_cluster: None, place: Path) -> Iterator[httpx.Client]:
    """The service with two names of the built-in model, one replica each."""
    settings = ServeSettings(
        models={"tiny": "builtin:tiny", "again": "builtin:tiny"},
        output=str(place),
        lease_s=4,
        replicas=Replicas(num_cpus=0.5),
    )
    with deployed(settings) as client:
        yield client


def test_it_animates_with_each_model_and_shows_the_page_and_the_documentation(client: httpx.Client) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny", "again"]
    ids = [send(client), send(client, model="again")]
    assert [video["model"] for video in wait(client, *ids)] == ["tiny", "again"]
    assert client.get("/health/ready").json()["status"] == "ready"
    assert client.get(f"/v1/videos/{ids[0]}/content").content[4:8] == b"ftyp"
    assert "Cinemo" in client.get("/docs").text
    page = client.get("/ui/")
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]


def test_a_client_that_leaves_cancels_its_synchronous_video(client: httpx.Client) -> None:
    data, files = {"prompt": "", "num_inference_steps": "100"}, {"input_reference": png()}
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/videos/sync", data=data, files=files, timeout=4)
    deadline = time.monotonic() + 20
    while (video := client.get("/v1/videos?limit=1").json()["data"][0])["status"] != "failed":
        assert time.monotonic() < deadline, video
        time.sleep(0.2)
    assert video["error"]["code"] == "cancelled"


@pytest.mark.long
def test_jobs_outlive_killed_replicas_and_a_killed_ingress(client: httpx.Client, place: Path) -> None:
    ids = [send(client, num_inference_steps="8") for _ in range(6)]
    time.sleep(2)
    replicas = processes("ServeReplica:cinemo:animator-0")
    assert replicas
    for process in replicas:
        process.send_signal(signal.SIGKILL)
    time.sleep(3)
    (ingress,) = processes("ServeReplica:cinemo:ingress")
    ingress.send_signal(signal.SIGKILL)
    ids += [send(client) for _ in range(2)]
    assert {video["status"] for video in wait(client, *ids)} == {"completed"}
    for name in ids:
        assert len(list((place / "videos").glob(f"{name}-*.mp4"))) == 1
