"""A storage that fails for a while makes no reject: the same rows come out; one that fails for longer stops the job."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train

from cinemo import checkpoint as model_directory
from cinemo.synthetic import write_clips
from pipelines.animate.config import AnimateConfig
from pipelines.core import models, patience, storage
from pipelines.core.isolation import guard
from pipelines.core.patience import StorageError
from pipelines.prepare import clips
from pipelines.prepare import job as prepare
from pipelines.prepare.config import PrepareConfig, SamplingConfig
from pipelines.sources import images, media
from pipelines.train.losses import read_losses
from pipelines.train.uploads import local_copy
from ray_jobs import common
from tests.pipelines.animate.conftest import QUICK, animate_plain, write_catalog, write_photo
from tests.pipelines.conftest import SMALL, rows
from tests.pipelines.outage import Outage
from tests.pipelines.prepare.plain import prepare_plain
from tests.pipelines.train.plain import exported, run_plain, small_config
from tests.ray_jobs import jobs
from tests.ray_jobs.nodes import started

SAMPLING = SamplingConfig(num_frames=4)


@pytest.fixture
def outage(bucket: Any, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outage]:
    """s3://videos behind a proxy, and a job's patience with it. `bucket` goes past the proxy."""
    proxy = Outage(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore, which would wait for seconds itself
    monkeypatch.setenv(patience.VARIABLE, "120")
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.2)
    bucket.ls("videos")  # connects, before the proxy is in the way
    type(bucket).clear_instance_cache()
    yield proxy
    proxy.close()


@pytest.fixture
def two_videos(bucket: Any, outage: Outage, tmp_path: Path) -> Path:
    """A folder of two captioned videos, which is also s3://videos/clips."""
    write_clips(tmp_path / "clips", 2, size=(64, 96), num_frames=60)
    bucket.put(str(tmp_path / "clips"), "videos/clips", recursive=True)
    return tmp_path / "clips"


def prepared(config: PrepareConfig) -> list[dict[str, Any]]:
    prepare_plain(config)
    assert not storage.list_files(f"{config.output}/rejects", (".parquet",))
    return rows(config.output)


def test_a_dataset_has_the_same_rows_when_the_storage_fails_for_a_while(
    two_videos: Path, outage: Outage, tmp_path: Path
) -> None:
    config = PrepareConfig(input="s3://videos/clips", output=str(tmp_path / "well"), **SMALL)
    wanted = prepared(config)
    for kind, name in (("slow", ".mp4"), ("reset", "")):  # of the videos; of all, the listing and captions first
        outage.fail(kind, 9, name)
        assert prepared(config.model_copy(update={"output": str(tmp_path / kind)})) == wanted
        assert outage.met == 9


def test_a_catalog_has_the_same_videos_when_the_storage_fails_for_a_while(
    bucket: Any, outage: Outage, checkpoint: Path, tmp_path: Path
) -> None:
    write_photo(tmp_path / "a.png", 1)
    bucket.put(str(tmp_path / "a.png"), "videos/a.png")
    catalog = write_catalog(tmp_path / "c.jsonl", [{"image": "s3://videos/a.png", "prompt": "it turns"}])
    config = AnimateConfig(catalog=catalog, output=str(tmp_path / "well"), model=str(checkpoint), **QUICK)
    assert animate_plain(config)["counts"]["videos"] == 1
    [wanted] = (path.name for path in (tmp_path / "well" / "videos").glob("*.mp4"))
    outage.fail("slow", 9, "a.png")
    counts = animate_plain(config.model_copy(update={"output": str(tmp_path / "slow")}))["counts"]
    assert (counts["videos"], counts["rejected"], outage.met) == (1, 0, 9)
    assert (tmp_path / "slow" / "videos" / wanted).is_file()


@pytest.mark.parametrize("kind", ["slow", "reset", "expired"])
def test_a_fault_that_a_decoders_process_meets_is_retried_by_its_parent(
    two_videos: Path, outage: Outage, kind: str
) -> None:
    video = {"uri": f"s3://videos/clips/{min(two_videos.glob('*.mp4')).name}", "caption": "", "fault": None}
    run = guard(int, 30, "--clip-timeout", clips.VideoError)
    outage.fail(kind, 5)
    [span] = clips.make_spans(video, SAMPLING, [(64, 64)], run)
    outage.fail(kind, 5)
    row = clips.decode({"reason": None, **span}, SAMPLING, run)
    assert (row["reason"], outage.met) == (None, 5)


def test_a_storage_that_does_not_answer_is_not_taken_for_a_slow_decoder(
    two_videos: Path, outage: Outage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "1")
    video = {"uri": f"s3://videos/clips/{min(two_videos.glob('*.mp4')).name}", "caption": "", "fault": None}
    outage.fail("silence")
    with pytest.raises(StorageError, match=r"no answer within .* also after 1 s"):
        clips.make_spans(video, SAMPLING, [(64, 64)], guard(int, 1.0, "--clip-timeout", clips.VideoError))


def test_a_fault_in_the_middle_of_a_video_is_not_taken_for_damage(
    two_videos: Path, outage: Outage, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "0")
    data = np.random.default_rng(0).bytes(3 * media.BLOCK)
    bucket.pipe("videos/large.mp4", data)

    def decode() -> None:
        with media.open_video("s3://videos/large.mp4") as file:
            assert not isinstance(file, str)
            file.read(10)
            outage.fail("reset")
            file.seek(2 * media.BLOCK)
            try:
                file.read(10)
            except OSError:
                raise clips.VideoError("unreadable", "what a decoder makes of it") from None

    with pytest.raises(StorageError):
        decode()


def test_an_output_is_written_and_read_when_the_storage_fails_for_a_while(outage: Outage) -> None:
    outage.fail("reset", 40)  # pyarrow itself tries some thirty times
    storage.put("s3://videos/out/a.json", b"{}")
    assert outage.met == 40
    outage.fail("slow", 40)
    assert storage.list_files("s3://videos/out", (".json",)) == ["s3://videos/out/a.json"]
    assert storage.read("s3://videos/out/a.json") == b"{}"


def test_a_checkpoint_is_read_when_the_storage_fails_for_a_while(bucket: Any, outage: Outage) -> None:
    bucket.pipe({"videos/run/state.json": b"{}", "videos/run/a/shard.pt": bytes(100)})
    saved = ray.train.Checkpoint("videos/run", storage.filesystem("s3://videos/run")[0])
    outage.fail("slow", 40, "shard")  # pyarrow itself tries some thirty times
    with local_copy(saved, "s3://videos/run") as folder:
        assert Path(folder, "state.json").read_bytes() == b"{}"
        assert Path(folder, "a", "shard.pt").read_bytes() == bytes(100)
    assert outage.met == 40


def test_after_the_patience_a_job_says_so_and_its_rerun_finishes(
    two_videos: Path,
    outage: Outage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = {"input": "s3://videos/clips", "output": str(tmp_path / "out"), **SMALL}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in config.items()]
    monkeypatch.setenv(patience.VARIABLE, "0.5")
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags])
    monkeypatch.setattr(common, "connect", lambda *_: None)
    monkeypatch.setattr(common, "disconnect", lambda: None)

    def run() -> int:
        return common.main(PrepareConfig, prepare.resolve, lambda job: prepare_plain(job.config), lambda _: 1)

    second = max(two_videos.glob("*.mp4")).name
    outage.fail("slow", name=second)
    assert run() == common.FAILED
    said = capsys.readouterr().err
    assert f"the storage fails at s3://videos/clips/{second}" in said
    assert "also after 0.5 s; when it answers again, the same command continues from here" in said
    assert not (tmp_path / "out" / "rejects").exists()
    outage.end()
    assert run() == common.DONE
    assert len(rows(tmp_path / "out")) == 2


@pytest.mark.long
def test_a_job_on_ray_stops_in_order_and_its_rerun_finishes(
    two_videos: Path, outage: Outage, tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "1")
    arguments = ("--input=s3://videos/clips", f"--output={tmp_path}/out", "--num-frames=4", "--score-only")
    arguments += ("--tracking-uri", tracking_uri)
    second = max(two_videos.glob("*.mp4")).name
    outage.fail("slow", name=second)
    code, _, errors = jobs.finish(jobs.start("prepare", tmp_path, *arguments))
    assert code == common.FAILED, errors
    assert f"the storage fails at s3://videos/clips/{second}" in errors.splitlines()[-1]
    outage.end()
    code, summary, errors = jobs.finish(jobs.start("prepare", tmp_path, *arguments))
    assert code == common.DONE, errors
    assert (summary["counts"]["clips"], summary["counts"]["rejects"]) == (2, {})


@pytest.mark.ray
@pytest.mark.long
def test_a_training_that_loses_a_worker_a_node_and_its_driver_while_it_uploads_goes_on_exact_at_another_stage(
    bucket: Any, outage: Outage, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(prepared, "videos/dataset", recursive=True)
    config = small_config("s3://videos/dataset", tmp_path)
    location = f"sqlite:///{tmp_path}/mlflow.db"
    given = {"dataset": config.dataset, "output": "s3://videos/run", "tracking_uri": location, "max_steps": 12}
    given |= {name: getattr(config, name) for name in ("init", "components", "total_batch", "micro_batch")}
    given |= {name: getattr(config, name) for name in ("learning_rate", "ema_decay", "validation_share")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    flags += ["--checkpoint-every=3", "--register=animator@champion"]
    monkeypatch.setenv("CINEMO_CACHE", str(tmp_path / "cache"))
    # Shards take two seconds, which is many steps: a kill is always in the middle of an upload.
    outage.delay = lambda method, path: 2.0 if method == "PUT" and "optim_states" in path else 0.02

    def start(workers: int, stage: int, address: str | None = None) -> Any:
        sharding = (f"--num-workers={workers}", f"--zero-stage={stage}")
        return jobs.start("train", tmp_path, *flags, *sharding, address=address)

    def uploads(step: int) -> bool:
        bucket.invalidate_cache()
        names = bucket.find(f"videos/run/checkpoints/step_{step:07d}")
        return bool(names) and not any("optim_states" in name for name in names)

    with started(tmp_path) as cluster:
        cluster.have(1)  # and one of the head's: a worker on each
        job = start(workers=2, stage=2, address=cluster.address)
        jobs.wait_until(job, lambda: uploads(6))
        jobs.kill_a_trainer(cluster.process)
        jobs.wait_until(job, lambda: not uploads(6))  # the worker group began anew, from step 3 or from nothing
        jobs.wait_until(job, lambda: uploads(9))
        cluster.lose()
        jobs.kill(job)
    assert not bucket.exists("videos/run/model")
    outage.fail("slow", 9, ".parquet")
    code, summary, errors = jobs.finish(start(workers=1, stage=3))
    assert (code, summary.get("steps")) == (0, 12), errors
    assert outage.met == 9
    assert " 1/12 steps" not in errors  # it did not begin anew

    plain = run_plain(config.model_copy(update={"dataset": prepared}), 12)
    np.testing.assert_allclose(read_losses("s3://videos/run"), plain.losses, rtol=1e-4)
    assert summary["registered"] == "models:/animator/1"
    registered = models.resolve(models.absolute("models:/animator@champion", location, "s3://videos/run"))
    assert model_directory.fingerprint(registered) == summary["model_fingerprint"]
    assert plain.distance(exported(registered), plain.average) < 1e-3


def test_what_is_the_files_fault_is_not_the_storages(bucket: Any, outage: Outage, tmp_path: Path) -> None:
    began = time.monotonic()
    for uri in ("s3://videos/none.png", "s3://nobody/none.png", str(tmp_path / "none.png"), f"{outage.address}/none"):
        with pytest.raises(images.ImageError) as caught:
            images.read(uri)
        assert caught.value.reason == "missing"
    assert time.monotonic() - began < 60, "these are not retried"
    for error in (PermissionError(errno.EACCES, "no"), OSError(errno.ENOSPC, "full"), ValueError("what is this")):
        assert not patience.is_fault(error)
    with pytest.raises(clips.VideoError) as of_a_decoder:
        guard(int, 0.1, "--clip-timeout", clips.VideoError)(time.sleep, 60)
    assert not patience.is_fault(of_a_decoder.value)
    denied = "When reading information for key 'a' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation"
    assert not patience.is_fault(OSError(denied))
    assert patience.is_fault(OSError(denied.replace("ACCESS_DENIED", "NETWORK_CONNECTION")))
    assert patience.is_fault(OSError(errno.ESTALE, "a file server restarted"))
