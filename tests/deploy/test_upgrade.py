"""The service gets a new version of its model by `serve deploy`, and no request is lost on the way."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cinemo import checkpoint as model_directory
from pipelines.core import tracking
from pipelines.serving.settings import public_name
from tests.deploy.test_cluster import ROOT
from tests.pipelines.serving.in_process import png
from tests.ray_jobs import head


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models:/animator/4", "animator"),
        ("models:/animator@champion", "animator"),
        ("models:/animator/4#http://mlflow:5000", "animator"),
        ("maxin-cn/Cinemo", "Cinemo"),
        ("/srv/models/mine/", "mine"),
        ("builtin:tiny", "builtin:tiny"),
    ],
)
def test_clients_call_every_version_of_a_model_the_same(model: str, name: str) -> None:
    assert public_name(model) == name


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[head.Head]:
    """A head that finds the code as cluster.yaml and the Dockerfile have it: by PYTHONPATH."""
    (tmp_path / "home").mkdir()
    more = {"PYTHONPATH": str(ROOT), "CINEMO_CACHE": str(tmp_path / "cache")}
    with head.start(tmp_path / "home", token=True, **more) as cluster:
        yield cluster


def register(source: Path, folder: Path, uri: str, alias: str) -> tuple[str, str]:
    """A model of its own in the registry: (its version's number, its fingerprint)."""
    card = model_directory.ModelCard(sizes=[(64, 64)], lengths=[2], lineage={"version": alias})
    model = model_directory.export_model(source, model_directory.load_unet(source), folder, card)
    print_ = model_directory.fingerprint(model)
    with tracking.start("train", str(folder), uri, {}) as log:
        version = tracking.register(log, model, "animator", alias, {tracking.FINGERPRINT: print_})
    return version.number, print_


@pytest.fixture
def versions(checkpoint: Path, tmp_path: Path) -> "Iterator[list[Future[tuple[str, str]]]]":
    """Two versions of a model, which are registered while the cluster starts."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with ThreadPoolExecutor(1) as thread:
        yield [thread.submit(register, checkpoint, tmp_path / name, uri, name) for name in ("champion", "candidate")]


class Client:
    """Asks for a video again and again, from a thread; keeps the ids, and whatever went wrong."""

    def __init__(self, url: str) -> None:
        self.url, self.ids, self.wrong, self.over = url, list[str](), list[Any](), threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            while not self.over.wait(0.5):
                try:
                    data = {"prompt": "", "num_inference_steps": "2"}
                    answer = client.post("/v1/videos", data=data, files={"input_reference": png()})
                    answer.raise_for_status()
                    self.ids.append(answer.json()["id"])
                except httpx.HTTPError as error:
                    self.wrong.append(error)

    def stop(self) -> list[dict[str, Any]]:
        """All videos, when all have ended."""
        self.over.set()
        self.thread.join()
        videos = []
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for name in self.ids:
                while (video := client.get(f"/v1/videos/{name}").json())["status"] not in ("completed", "failed"):
                    time.sleep(0.1)
                videos.append(video)
        return videos


@pytest.mark.long
@pytest.mark.ray
def test_requests_go_on_while_replicas_with_the_new_version_come(
    versions: "list[Future[tuple[str, str]]]", cluster: head.Head, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (port,) = head.free_ports(1)
    config = yaml.safe_load((ROOT / "docs/deploy/serve.yaml").read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    assert application["import_path"] == "serve_app:app"
    given, file, sidecars = application["args"], tmp_path / "serve.yaml", tmp_path / "out" / "videos"
    given |= {"output": str(tmp_path / "out"), "tracking_uri": uri, "page": False}
    given["replicas"] |= {"num_cpus": 0.5, "max_replicas": 1, "drain_s": 60}
    given["limits"]["max_queue"] = 10_000  # so that it is not full, however long a replica takes to start

    def deploy(model: str) -> None:
        given["model"] = model
        file.write_text(yaml.safe_dump(config))
        done = cluster.shell(f"serve deploy --address {cluster.address} {file}")
        assert done.returncode == 0, done.stderr

    def made_by(fingerprint: str) -> bool:
        return any(fingerprint in path.read_text() for path in sidecars.glob("*.json"))

    def wait(ready: Any) -> None:
        deadline = time.monotonic() + 180
        while not ready():
            assert time.monotonic() < deadline, cluster.shell(f"serve status --address {cluster.address}").stdout
            time.sleep(0.2)

    def is_ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    number, old = versions[0].result()
    deploy(f"models:/animator/{number}")
    wait(is_ready)
    number, new = versions[1].result()
    client = Client(f"http://127.0.0.1:{port}")
    try:
        wait(lambda: made_by(old))
        assert not made_by(new)
        deploy(f"models:/animator/{number}")
        wait(lambda: made_by(new))
    finally:
        videos = client.stop()
    assert client.wrong == []
    assert {video["status"] for video in videos} == {"completed"}
    assert len(videos) > 5
