"""What the tests of the dataflows share: a local cluster, an S3 server, a folder of videos, a dataset made from it."""

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file, save_file

from cinemo.synthetic import write_clips
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig
from ray_jobs import common
from tests.pipelines.prepare.plain import prepare_plain

NUM_VIDEOS = 6
# Few frames and the fewest cells: a training step is short. One encoder: on two cores a second only loads torch again.
SMALL = {"num_frames": 4, "height": 64, "width": 64, "encoders": 1}


@pytest.fixture(scope="session")
def ray_cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster, connected to as the jobs do; its nodes' copies of registered models are this session's.

    Its processes inherit the environment of this moment, so they reach the S3 server; the tests do with `bucket` alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CINEMO_CACHE", str(tmp_path_factory.mktemp("cache")))
        with pytest.MonkeyPatch.context() as at_start:
            use_server(at_start, s3_server)
            common.connect(4, verbose=False)
        yield
        common.disconnect()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def use_server(patch: pytest.MonkeyPatch, address: str) -> None:
    """Let S3 be the server at this address, for this process and those that it starts."""
    patch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "of-the-test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """s3://videos, empty, on a server of this machine, as a file system that writes to it."""
    urllib.request.urlopen(f"{s3_server}/moto-api/reset", data=b"").close()
    use_server(monkeypatch, s3_server)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    type(files).clear_instance_cache()  # a client keeps the listings of the test before
    files.mkdir("videos")
    yield files
    type(files).clear_instance_cache()


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned videos, one whose second half is garbage, and one of two frames."""
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder, NUM_VIDEOS, size=(64, 96), num_frames=60)
    good = sorted(folder.glob("*.mp4"))[0].read_bytes()
    (folder / "broken.mp4").write_bytes(good[: len(good) // 4])
    brief = tmp_path_factory.mktemp("brief")
    write_clips(brief, 1, size=(64, 96), num_frames=2)
    shutil.copy(next(brief.glob("*.mp4")), folder / "brief.mp4")
    return folder


@pytest.fixture(scope="session")
def prepare_config(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> PrepareConfig:
    output = tmp_path_factory.mktemp("prepared") / "ds"
    return PrepareConfig(input=str(videos), output=str(output), clips_per_video=3, clips_per_file=4, **SMALL)


@pytest.fixture(scope="session")
def mixed_config(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> PrepareConfig:
    """Settings for two sizes and two lengths; to `videos` it adds three upright, five short and one too small."""
    folder = shutil.copytree(videos, tmp_path_factory.mktemp("mixed") / "videos")
    for kind, count, size, frames in (("tall", 3, (96, 64), 60), ("short", 5, (64, 96), 9), ("small", 1, (48, 32), 60)):
        other = tmp_path_factory.mktemp(kind)
        write_clips(other, count, size=size, num_frames=frames)
        for path in other.iterdir():
            shutil.copy(path, folder / f"{kind}_{path.name}")
    shapes = {"height": None, "width": None, "sizes": "96x64,64x96", "num_frames": "3,4"}
    output = str(tmp_path_factory.mktemp("mixed") / "ds")
    return PrepareConfig(**{**SMALL, **shapes}, input=str(folder), output=output, clips_per_video=3, clips_per_file=4)


@pytest.fixture(scope="session")
def mixed(mixed_config: PrepareConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the dataset of mixed_config, made without Ray."""
    config = mixed_config.model_copy(update={"output": str(tmp_path_factory.mktemp("mixed") / "plain")})
    prepare_plain(config)
    return config.output


@pytest.fixture(scope="session")
def several_shapes(mixed: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A copy of `mixed` whose uris are names of files, so that the same videos are held out wherever the tests run."""
    place = str(shutil.copytree(mixed, tmp_path_factory.mktemp("mixed") / "named"))
    for path in Path(place, "data").rglob("*.parquet"):
        table = pq.read_table(path)
        column = table.schema.get_field_index("uri")
        names = pa.array([Path(uri).name for uri in table["uri"].to_pylist()], table.schema.field(column).type)
        pq.write_table(table.set_column(column, table.schema.field(column), names), path)
    return place


@pytest.fixture(scope="session")
def summary(prepare_config: PrepareConfig, ray_cluster: None) -> dict[str, Any]:
    """What the prepare job said about the dataset at prepare_config.output."""
    return prepare.run(prepare.resolve(prepare_config))


@pytest.fixture(scope="session")
def prepared(prepare_config: PrepareConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the same dataset, made without Ray: for tests that only need one."""
    config = prepare_config.model_copy(update={"output": str(tmp_path_factory.mktemp("prepared") / "plain")})
    prepare_plain(config)
    return config.output


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database for jobs whose run no test looks at: a new one takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


def rows(output: str | Path, folder: str = "data") -> list[dict[str, Any]]:
    """All rows of a dataset, latents included, in an order that does not depend on files."""
    folders = {path.parent for path in Path(output, folder).rglob("*.parquet")}  # one for each shape
    found = [row for place in sorted(folders) for row in pq.read_table(place).to_pylist()]
    return sorted(found, key=lambda row: (row["uri"], row["start_frame"] or 0))


def export_another(part: Path) -> None:
    """Replace the weights in a part of a model directory, as a training that exports again does."""
    (file,) = part.glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, part / "new", metadata={"format": "pt"})
    (part / "new").replace(file)
