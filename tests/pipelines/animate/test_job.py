"""The catalog job on a real local cluster: what it writes, what it lists, what it does again, what it survives."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.animate import files, flow, replica
from pipelines.animate import job as animate
from pipelines.animate.config import AnimateConfig
from tests.pipelines.animate.conftest import QUICK, write_catalog, write_photo

pytestmark = pytest.mark.ray


def every_file(output: str) -> dict[str, tuple[int, int]]:
    paths = [path for path in Path(output).rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def listed(config: AnimateConfig, folder: str = "results") -> dict[int, dict[str, Any]]:
    path = Path(config.output, folder)
    rows = pq.read_table(path).to_pylist() if path.exists() and any(path.iterdir()) else []
    assert len({row["row"] for row in rows}) == len(rows)
    return {row["row"]: row for row in rows}


def sidecars(config: AnimateConfig) -> set[str]:
    return {path.stem for path in Path(config.output, "videos").glob("*.json")}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows: two that are equal, one that is equal but for its file's name, three that are wrong."""
    folder = tmp_path_factory.mktemp("catalog")
    for number in range(3):
        write_photo(folder / f"{number}.png", number)
    shutil.copy(folder / "0.png", folder / "copy.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    lines: list[dict[str, Any]] = [{"image": f"{number}.png", "prompt": f"prompt {number}"} for number in range(3)]
    lines += [lines[0], {**lines[0], "image": "copy.png"}, {"image": "broken.png", "prompt": "x"}]
    lines += [{"image": "1.png", "prompt": 5}, {"image": "1.png", "prompt": "x", "motion_bucket": 77}]
    write_catalog(folder / "catalog.jsonl", lines)
    return folder


@pytest.fixture(scope="module")
def config(catalog: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> AnimateConfig:
    output = tmp_path_factory.mktemp("animated") / "out"
    return AnimateConfig(
        catalog=str(catalog / "catalog.jsonl"),
        output=str(output),
        model=str(checkpoint),
        max_replicas=1,
        batch=2,
        **QUICK,
    )


@pytest.fixture(scope="module")
def summary(config: AnimateConfig, ray_cluster: None) -> dict[str, Any]:
    return animate.run(animate.resolve(config))


def test_each_row_has_a_video_or_a_reason(config: AnimateConfig, summary: dict[str, Any]) -> None:
    assert summary["counts"] == {
        "rows": 8, "listed": 5, "videos": 3, "rejected": 3,
        "rejects": {"bad_prompt": 1, "bad_setting": 1, "corrupt": 1},
    }  # fmt: skip
    assert summary["new_videos"] == 3
    results, rejects = listed(config), listed(config, "rejects")
    assert {number: row["prompt"] for number, row in results.items()} == {
        0: "prompt 0", 1: "prompt 1", 2: "prompt 2", 3: "prompt 0", 4: "prompt 0"
    }  # fmt: skip
    assert {number: row["reason"] for number, row in rejects.items()} == {
        5: "corrupt", 6: "bad_prompt", 7: "bad_setting"
    }  # fmt: skip
    assert all(row["message"] and row["stage"] for row in rejects.values())


def test_equal_rows_share_one_video_and_are_listed_each(config: AnimateConfig, summary: dict[str, Any]) -> None:
    results = listed(config)
    assert results[0]["id"] == results[3]["id"] == results[4]["id"]
    assert Path(results[4]["image"]).name == "copy.png"
    assert sidecars(config) == {row["id"] for row in results.values()}
    assert len(list(Path(config.output, "videos").glob("*.mp4"))) == 3


def test_a_sidecar_says_how_its_video_was_made(config: AnimateConfig, summary: dict[str, Any]) -> None:
    row = listed(config)[1]
    sidecar = json.loads(Path(config.output, "videos", f"{row['id']}.json").read_text())
    assert sidecar["request"]["prompt"] == "prompt 1"
    assert sidecar["request"]["image"].endswith("1.png")
    assert sidecar["model_fingerprint"] == summary["model_fingerprint"] == row["model_fingerprint"]
    assert sidecar["motion_score"] == pytest.approx(row["measured_motion_score"], abs=1e-6)
    assert {"versions", "timings", "psnr_first_frame", "model_lineage", "batch"} <= sidecar.keys()


def test_people_find_a_gallery_a_sheet_and_a_summary(config: AnimateConfig, summary: dict[str, Any]) -> None:
    output = Path(config.output)
    assert "prompt 2" in (output / "index.html").read_text()
    assert (output / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "summary.json").read_text()) == summary
    assert not list((output / "latents").iterdir())


def test_mlflow_has_the_run_with_its_parameters_and_numbers(config: AnimateConfig, summary: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path(config.output).parent / 'mlflow.db'}")
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["num_inference_steps"] == "2"
    assert (run.data.metrics["videos"], run.data.metrics["rejects_corrupt"]) == (3, 1)
    assert run.data.tags["model_fingerprint"] == summary["model_fingerprint"]
    assert "sheet.png" in {found.path for found in client.list_artifacts(run.info.run_id)}


def test_rerun_of_a_finished_job_changes_no_file(config: AnimateConfig, summary: dict[str, Any]) -> None:
    before = every_file(config.output)
    again = animate.run(animate.resolve(config))
    assert every_file(config.output) == before
    assert (again["counts"], again["new_videos"]) == (summary["counts"], 0)


@pytest.fixture
def copied(config: AnimateConfig, summary: dict[str, Any], catalog: Path, tmp_path: Path) -> Iterator[AnimateConfig]:
    """The finished job; its catalog and its files are as they were afterwards."""
    shutil.copytree(catalog, tmp_path / "catalog", copy_function=shutil.copy2)
    shutil.copytree(config.output, tmp_path / "out", copy_function=shutil.copy2)
    yield config
    shutil.rmtree(config.output)
    shutil.copytree(tmp_path / "out", config.output, copy_function=shutil.copy2)
    shutil.copytree(tmp_path / "catalog", catalog, copy_function=shutil.copy2, dirs_exist_ok=True)


def test_what_changed_in_the_catalog_is_made_and_nothing_else(copied: AnimateConfig, catalog: Path) -> None:
    """Another prompt, another photo under the same name, a photo that is mended, a row that is gone, one in front."""
    before = every_file(copied.output)
    lines = [json.loads(line) for line in Path(copied.catalog).read_text().splitlines()]
    lines[1]["prompt"] = "another"
    write_photo(catalog / "2.png", 7)
    write_photo(catalog / "broken.png", 8)
    write_catalog(Path(copied.catalog), [lines[6], *lines[:3], *lines[4:6]])
    made = animate.run(animate.resolve(copied))
    assert made["counts"] == {
        "rows": 6, "listed": 5, "videos": 4, "rejected": 1, "rejects": {"bad_prompt": 1}
    }  # fmt: skip
    assert made["new_videos"] == 3
    after = every_file(copied.output)
    videos = {name: at for name, at in before.items() if name.startswith("videos/")}
    assert videos.items() <= after.items()  # those of rows that are gone as well
    results = listed(copied)
    assert {number: row["prompt"] for number, row in results.items()} == {
        1: "prompt 0", 2: "another", 3: "prompt 2", 4: "prompt 0", 5: "x"
    }  # fmt: skip
    assert results[1]["id"] == results[4]["id"]


def test_finished_videos_are_listed_without_being_made_and_one_without_a_sidecar_from_what_was_kept(
    copied: AnimateConfig,
) -> None:
    """As after a kill between a video and its line in the listing, and between sampling and writing another."""
    row = listed(copied)[2]
    sidecar = Path(copied.output, "videos", f"{row['id']}.json")
    for path in [*Path(copied.output, "results").iterdir(), Path(copied.output, "summary.json"), sidecar]:
        path.unlink()
    before = every_file(copied.output)
    files.keep(copied.output, row["id"], np.zeros((4, 3, 8, 8), np.float32))
    made = animate.run(animate.resolve(copied))
    assert (made["counts"]["listed"], made["counts"]["videos"], made["new_videos"]) == (5, 3, 1)
    after = every_file(copied.output)
    finished = {name: at for name, at in before.items() if name.startswith("videos/") and row["id"] not in name}
    assert len(finished) == 2 * 3  # the video, its thumbnail and its sidecar
    assert finished.items() <= after.items()
    again = listed(copied)[2]
    assert again["id"] == row["id"]
    assert again["measured_motion_score"] != row["measured_motion_score"]  # zeros, not what sampling gives
    assert not list(Path(copied.output, "latents").iterdir())


def test_rows_with_a_video_get_its_motion_beside_rows_without(
    ray_cluster: None,
    of_residuals: Path,
    moving_video: Path,
    tracking_uri: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from PIL import Image
    from skimage.data import astronaut

    from cinemo.lineage import lines, trace

    Image.fromarray(astronaut()[:96, :96]).save(tmp_path / "a.png")
    shutil.copy(moving_video, tmp_path / "moving.mp4")
    wishes: list[dict[str, Any]] = [{"seed": 0}, {"video": "moving.mp4", "prompt": "one"}, {"video": "gone.mp4"}]
    wishes += [{"seed": 1}, {"video": "moving.mp4", "prompt": "two"}, {"video": "moving.mp4", "prompt": "one"}]
    catalog_file = write_catalog(tmp_path / "c.jsonl", [{"image": "a.png", "prompt": "x", **wish} for wish in wishes])
    config = AnimateConfig(
        catalog=catalog_file, output=str(tmp_path / "out"), model=str(of_residuals), max_replicas=1, batch=2,
        tracking_uri=tracking_uri, **QUICK,
    )  # fmt: skip
    made = animate.run(animate.resolve(config))
    assert "note: " in capfd.readouterr().err  # that little of the motion comes back
    assert made["counts"] == {
        "rows": 6, "listed": 5, "videos": 4, "rejected": 1, "rejects": {"missing": 1}
    }  # fmt: skip
    results, source = listed(config), str(tmp_path / "moving.mp4")
    assert [results[number]["source_video"] for number in (0, 1, 3, 4, 5)] == [None, source, None, source, source]
    assert results[1]["id"] == results[5]["id"]
    sidecar = Path(config.output, "videos", f"{results[1]['id']}.json")
    assert json.loads(sidecar.read_text())["request"]["video"] == source
    assert f"video {source}" in next(lines(trace(str(sidecar.with_suffix(".mp4")))))
    before = every_file(config.output)
    assert animate.run(animate.resolve(config))["new_videos"] == 0
    assert every_file(config.output) == before


class Mortal(flow.Replica):
    """A replica whose process ends when it meets a certain prompt; a row that ended two processes is given up."""

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        replica.DEATHS = 2  # in this process; each further one costs its start. test_replica.py has all
        make = self.animate.make

        def watched(rows: Any) -> Any:
            if any("deadly" in row["request"] for row in rows):
                os._exit(1)
            return make(rows)

        self.animate.make = watched
        yield from super().__call__(block)


@pytest.mark.timeout(300)
@pytest.mark.long
def test_what_ends_its_process_and_what_hangs_are_rejects_and_the_rest_is_made(
    ray_cluster: None, catalog: Path, checkpoint: Path, tracking_uri: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "hang.png")
    lines = [{"image": str(catalog / "0.png"), "prompt": f"x {number}"} for number in range(6)]
    lines.insert(1, {"image": str(catalog / "1.png"), "prompt": "deadly"})
    lines.insert(3, {"image": str(tmp_path / "hang.png"), "prompt": "x"})
    catalog_file = write_catalog(tmp_path / "catalog.jsonl", lines)
    config = AnimateConfig(
        catalog=catalog_file, output=str(tmp_path / "out"), model=str(checkpoint), max_replicas=1, batch=4,
        image_timeout=3, tracking_uri=tracking_uri, **QUICK,
    )  # fmt: skip
    made = animate.run(animate.resolve(config), Mortal)
    assert made["counts"]["rejects"] == {"crashed": 1, "timeout": 1}
    assert made["counts"]["videos"] == 6
    assert {number: row["reason"] for number, row in listed(config, "rejects").items()} == {1: "crashed", 3: "timeout"}
