"""The evaluation on a real local cluster: every row, a rerun, another model, a lost part, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cinemo.metrics.frames import mean_colour_drift
from cinemo.motion import motion_bucket, motion_score
from cinemo.synthetic import make_clip
from cinemo.video import probe
from pipelines.evaluate import job as evaluate
from pipelines.evaluate.config import EvaluateConfig
from tests.metrics.test_networks import SmallI3D

pytestmark = pytest.mark.ray

COUNT = 3
SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_frames": 10, "num_inference_steps": 1, "workers": 1}


def every_file(output: str) -> dict[str, tuple[int, bytes]]:
    paths = [path for path in Path(output).rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def config(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluateConfig:
    folder = tmp_path_factory.mktemp("evaluated")
    torch.jit.script(SmallI3D()).save(folder / "i3d.pt")
    return EvaluateConfig(
        dataset=f"synthetic:{COUNT}:pan,zoom", output=str(folder / "out"), model=[str(checkpoint)],
        ablate="init=dct,none", i3d=str(folder / "i3d.pt"), **SMALL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def summary(config: EvaluateConfig, ray_cluster: None) -> dict[str, Any]:
    return evaluate.run(evaluate.resolve(config))


def rows(output: str) -> list[dict[str, Any]]:
    return sorted(pq.read_table(f"{output}/rows").to_pylist(), key=lambda row: (row["variant"], row["name"]))


def test_every_case_is_measured_under_every_variant(config: EvaluateConfig, summary: dict[str, Any]) -> None:
    found = rows(config.output)
    assert len(found) == len({row["id"] for row in found}) == 3 * COUNT == summary["new_rows"]
    assert summary["counts"] == {"cases": COUNT, "rows": 3 * COUNT, "rejects": {}}
    assert len({row["variant"] for row in found}) == 3
    for row in found:
        assert probe(Path(config.output) / row["video"]).num_frames == 10
        assert len(row["i3d"]) == 400


def test_the_real_rows_are_what_the_metrics_say_of_the_true_clips(
    config: EvaluateConfig, summary: dict[str, Any]
) -> None:
    for number, row in enumerate(row for row in rows(config.output) if row["variant"] == "real"):
        clip = make_clip(number, (64, 64), 10, kinds=(row["kind"],), held_out=True)
        assert row["requested_bucket"] == row["measured_bucket"] == motion_bucket(motion_score(clip.frames))
        assert row["mean_colour_drift"] == pytest.approx(mean_colour_drift(clip.frames).tolist())
        assert row["prompt"] == clip.caption
        assert row["psnr"] is None  # its first frame is the image


def test_the_report_is_written_and_says_what_it_lacks(config: EvaluateConfig, summary: dict[str, Any]) -> None:
    text = (Path(config.output) / "report.md").read_text()
    assert "| FVD ↓ | - |" in text
    assert "fid is left out: no weights: pass --inception" in text
    assert summary["left_out"].keys() == {"fid", "is", "clipsim", "lpips"}
    for name in ("sheet.png", "motion.png", "abruptness.png", "colour_drift.png", "report.parquet", "summary.json"):
        assert (Path(config.output) / name).stat().st_size > 1000
    table = {
        (row["metric"], row["variant"]): row for row in pq.read_table(f"{config.output}/report.parquet").to_pylist()
    }
    own = [row["abruptness"] for row in rows(config.output) if row["variant"].endswith("init=none")]
    assert table["abruptness", f"{config.model[0]} init=none"]["value"] == pytest.approx(np.mean(own))


def test_mlflow_has_the_table_and_the_pictures(config: EvaluateConfig, summary: dict[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path(config.output).parent / 'mlflow.db'}")
    run = client.get_run(summary["run_id"])
    assert run.info.status == "FINISHED"
    assert "fvd/checkpoint init_dct" in run.data.metrics
    assert {"report.md", "sheet.png"} <= {file.path for file in client.list_artifacts(summary["run_id"])}


def test_a_finished_job_changes_no_file(config: EvaluateConfig, summary: dict[str, Any]) -> None:
    before = every_file(config.output)
    again = evaluate.run(evaluate.resolve(config))
    assert again["new_rows"] == 0
    assert again["metrics"] == summary["metrics"]
    assert every_file(config.output) == before


def test_lost_rows_are_measured_again_and_finished_videos_are_a_model(
    config: EvaluateConfig, summary: dict[str, Any], tmp_path: Path
) -> None:
    """The first variant's videos, judged as videos of unknown origin, give nearly what the frames gave.

    One of them cannot be read: a reject.
    """
    expected = rows(config.output)
    lost = sorted(Path(config.output, "rows").iterdir())[0]
    count = pq.read_table(lost).num_rows
    lost.unlink()
    made = [row for row in expected if row["variant"].endswith("init=dct")]
    shutil.copytree(Path(config.output, made[0]["video"]).parent, tmp_path / "finished")
    (tmp_path / "finished" / Path(made[0]["video"]).name).write_bytes(b"no video")
    more = config.model_copy(update={"model": [*config.model, f"videos:{tmp_path}/finished"]})
    again = evaluate.run(evaluate.resolve(more))
    assert again["new_rows"] == count + COUNT
    assert again["counts"] == {"cases": COUNT, "rows": 4 * COUNT - 1, "rejects": {"unreadable": 1}}
    found = rows(config.output)
    ours = [{**row, "seconds": 0} for row in found if not row["variant"].startswith("videos:")]
    assert ours == [{**row, "seconds": 0} for row in expected]
    finished = {row["name"]: row for row in found if row["variant"].startswith("videos:")}
    assert finished.keys() == {row["name"] for row in made[1:]}
    for row in made[1:]:
        assert finished[row["name"]]["score"] == pytest.approx(row["score"], abs=0.1)


def test_other_settings_do_not_mix_with_what_is_there(config: EvaluateConfig, summary: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--seed: .* was made with seed 0, this job has 1"):
        evaluate.resolve(config.model_copy(update={"seed": 1}))
    assert json.loads((Path(config.output) / "settings.json").read_text())["seed"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "synthetic:x"}, "it has no number of clips"),
        ({"dataset": "nowhere"}, "nowhere does not exist"),
        ({"i3d": __file__}, "is not a TorchScript file, which I3D needs"),
        ({"num_frames": 8}, "FVD needs clips of at least 10 frames, got 8"),
        ({"model": ["builtin:tiny"]}, "64 x 64 was not trained by this model; it takes 320 x 512, "),
        ({"model": ["videos:nowhere"]}, "there is no video in it"),
        ({"model": ["real"]}, "are measured anyway"),
        ({"scheduler": "magic"}, "--scheduler magic is unknown"),
        ({"model": ["no-such-model"]}, "no-such-model"),
    ],
)
def test_what_cannot_work_is_refused_before_the_cluster(
    config: EvaluateConfig,
    changes: dict[str, Any],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=words):
        evaluate.resolve(config.model_copy(update={"output": "fresh", **changes}))
    assert list(tmp_path.iterdir()) == []
