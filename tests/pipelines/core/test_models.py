"""Registered models: one version a fingerprint, the same files wherever a job wants them, refused in one sentence."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from cinemo import checkpoint
from pipelines.core import models, storage, tracking
from tests.ray_jobs import jobs

NOWHERE = "http://127.0.0.1:9"  # a port that nothing listens on


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of an MLflow database that has runs already: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("registry")
    with tracking.start("test", str(folder / "out"), None, {}) as log:
        assert log.uri is not None
        return log.uri


@pytest.fixture
def model(tmp_path: Path, checkpoint: Path) -> Path:
    """A model directory of its own fingerprint."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / "note.json").write_text(f'"{tmp_path}"')
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing remembered."""
    monkeypatch.setenv("CINEMO_CACHE", str(tmp_path / "cache"))
    models.fetch.cache_clear()
    return tmp_path / "cache" / "models"


def put(model: Path, name: str, registry: str) -> str | None:
    """Register a directory from a run of its own."""
    tags = {"model_fingerprint": checkpoint.fingerprint(model), "dataset_fingerprint": "d1"}
    with tracking.start("test", str(model), registry, {}) as log:
        return models.register(name, str(model), tags, log)


def copies(cache: Path) -> list[str]:
    """Everything in the cache but locks."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_registered_model_is_the_same_directory_under_its_alias_and_under_its_number(
    model: Path, registry: str, cache: Path
) -> None:
    assert put(model, "one", registry) == "models:/one/1"
    version = MlflowClient(registry).get_model_version_by_alias("one", "candidate")
    assert version.tags == {"model_fingerprint": checkpoint.fingerprint(model), "dataset_fingerprint": "d1"}

    placed = models.absolute("models:/one@candidate", registry, "out")
    assert placed == f"models:/one/1#{registry}"
    assert models.absolute("models:/one/1", registry, "out") == placed
    assert models.absolute(placed, NOWHERE, "elsewhere") == placed
    shutil.rmtree(model / "unet")  # the registry has files of its own
    found = models.resolve(placed)
    assert checkpoint.fingerprint(found) == version.tags["model_fingerprint"]
    assert copies(cache) == [version.tags["model_fingerprint"]]


def test_the_default_registry_is_the_database_beside_the_output(model: Path, registry: str) -> None:
    put(model, "beside", registry)
    output = Path(registry.removeprefix("sqlite:///")).parent / "some-job"
    assert models.absolute("models:/beside@candidate", None, str(output)) == f"models:/beside/1#{registry}"


def test_a_fingerprint_has_one_version_and_the_alias_goes_to_what_was_registered_last(
    model: Path, registry: str
) -> None:
    assert put(model, "two", registry) == put(model, "two", registry) == "models:/two/1"
    (model / "note.json").write_text('"other"')
    assert put(model, "two@candidate", registry) == "models:/two/2"
    assert put(model, "two@champion", registry) == "models:/two/2"
    client = MlflowClient(registry)
    assert len(client.search_model_versions("name = 'two'")) == 2
    assert client.get_registered_model("two").aliases == {"candidate": 2, "champion": 2}


def test_processes_that_want_a_model_at_once_share_one_copy_and_it_is_downloaded_once(
    model: Path, registry: str, cache: Path
) -> None:
    put(model, "shared", registry)
    placed = models.absolute("models:/shared/1", registry, "out")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(models.fetch.__wrapped__, [placed] * 4))
    assert [path.name for path in found] == copies(cache)
    before = (next(iter(found)) / "unet").stat().st_ino
    assert (models.fetch.__wrapped__(placed) / "unet").stat().st_ino == before


def test_files_that_changed_in_the_registry_are_refused_and_leave_no_copy(
    model: Path, registry: str, cache: Path
) -> None:
    put(model, "changed", registry)
    source = Path(tracking.find_version("changed", "1", None, registry).source)
    (source / "note.json").write_text('"something else"')
    with pytest.raises(ValueError, match=r"has fingerprint .* but was registered with .*; register it again"):
        models.resolve(models.absolute("models:/changed/1", registry, "out"))
    shutil.rmtree(source)
    with pytest.raises(ValueError, match=r"models:/changed/1.* cannot be copied from"):
        models.resolve(models.absolute("models:/changed/1", registry, "out"))
    assert copies(cache) == []


def test_a_version_that_was_registered_by_other_means_needs_the_tag(model: Path, registry: str) -> None:
    client = MlflowClient(registry)
    client.create_registered_model("by-hand")
    client.create_model_version("by-hand", str(model))
    placed = models.absolute("models:/by-hand/1", registry, "out")
    with pytest.raises(ValueError, match="has no tag model_fingerprint; set it to the fingerprint that `cinemo info`"):
        models.resolve(placed)
    client.set_model_version_tag("by-hand", "1", "model_fingerprint", checkpoint.fingerprint(model))
    assert (models.resolve(placed) / "unet").is_dir()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("models:/nobody@candidate", r"models:/nobody@candidate is not to be had from the registry at sqlite:.*nobody"),
        ("models:/nobody/3", r"models:/nobody/3 is not to be had"),
        ("models:/known@other", r"models:/known@other is not to be had .*other"),
        ("models:/known", r"write models:/NAME@ALIAS or models:/NAME/VERSION"),
        (f"models:/known/1#{NOWHERE}", rf"not to be had from the registry at {NOWHERE}"),
    ],
)
def test_an_unknown_name_is_one_sentence(model: Path, registry: str, name: str, sentence: str) -> None:
    put(model, "known", registry)
    with pytest.raises(ValueError, match=sentence):
        models.resolve(models.absolute(name, registry, "out"))


def test_a_job_with_an_unknown_name_exits_2_with_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name, more in (("prepare", ["--input", "v", "--model"]), ("train", ["--dataset", "ds", "--init"])):
        code, summary, errors = jobs.finish(
            jobs.start(name, tmp_path, "--output", "out/run", *more, "models:/nobody@candidate")
        )
        assert (code, summary) == (2, {})
        assert f"there is no registry at sqlite:///{tmp_path}/out/mlflow.db; set --tracking-uri" in errors
        assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["v"]


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@latest", "a@v3", "a@", "@b", "a b@c", "a'b"])
def test_names_that_mlflow_would_refuse_are_refused_before_training(name: str) -> None:
    with pytest.raises(ValueError, match="should be NAME or NAME@ALIAS"):
        models.check_name(name)


def test_a_registry_that_is_away_is_a_warning(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert put(model, "late", NOWHERE) is None
    said = capsys.readouterr().err.splitlines()
    assert f"{model} is complete, but not registered as late@candidate" in said[-1]
    assert "the same command registers it, and trains no more" in said[-1]


def test_a_directory_is_hashed_once_until_one_of_its_files_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    whole = checkpoint.fingerprint
    monkeypatch.setattr(checkpoint, "fingerprint", lambda folder: hashed.append(folder) or whole(folder))
    first = models.fingerprint(model)
    assert models.fingerprint(model) == models.look_up(str(model)).fingerprint == first == whole(model)
    assert hashed == [model]
    (model / "note.json").write_text('"another"')
    assert models.fingerprint(model) == whole(model) != first


def test_a_model_whose_upload_was_cut_off_is_refused_until_it_is_whole(
    model: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = "s3://videos/run/model"
    models.publish(model, there)

    def cut_off(uri: str) -> None:
        raise ConnectionError(uri)

    (model / "note.json").write_text('"trained for longer"')
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", cut_off)
        with pytest.raises(ConnectionError):
            models.publish(model, there)
    with pytest.raises(ValueError, match="half an export"):
        models.resolve(str(storage.download(there, tmp_path / "half")))
    fingerprint = models.publish(model, there)
    whole = storage.download(there, tmp_path / "whole")
    assert models.fingerprint(models.resolve(str(whole))) == fingerprint == models.fingerprint(model)
