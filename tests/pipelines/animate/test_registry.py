"""Models and adapters in a registry whose address has a password: they are used, and the password is not stored."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.animate import files, flow, listing, plan
from pipelines.animate import job as animate
from pipelines.animate.config import AnimateConfig
from pipelines.animate.records import table
from pipelines.animate.replica import Animator
from pipelines.core import models
from pipelines.dataset import manifest
from tests.loras import write_adapter
from tests.pipelines.animate.conftest import QUICK, directly, write_catalog, write_photo


def make(config: AnimateConfig) -> dict[str, Any]:
    """Run a job whose videos are made in this process, without Ray; returns its summary."""
    job = animate.resolve(config)
    config = job.config
    planned = plan.write(config, job.model, f"{config.output}/catalog")
    animator = Animator(config, flow.model_facts(config, job.model), flow.Ledger(), planned.loras)
    writer = listing.Writer(config.output, config.ending)
    made = plan.made_with(config, job.model)
    parts = manifest.slices(planned.files).to_pylist()
    tasks = [task for part in parts for task in manifest.read_slice(**part)]
    for block in animator(table([flow.rows.prepare(task, made, directly) for task in tasks])):
        for row in block.to_pylist():
            writer.add(files.write(row, config.output, config.ending) if row["frames"] else row)
    writer.close()
    return animate.run(job)


def stored(folder: Path) -> dict[Path, str]:
    """What the files below a folder hold, as text."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    tables = {path: str(pq.read_table(path).to_pylist()) for path in found if path.suffix == ".parquet"}
    return {path: path.read_bytes().decode(errors="replace") for path in found} | tables


def test_no_output_holds_the_password_of_a_registry(
    tmp_path: Path, checkpoint: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = {name: write_adapter(tmp_path / name, checkpoint, seed) for seed, name in enumerate(("ink", "rain"))}
    folders = {"base": checkpoint, **adapters}
    registries = ["http://user:Pa55-one@registry/mlflow", "http://user:Pa55-two@registry/mlflow"]
    placed = {f"models:/{name}/1#{uri}": folders[name] for name in folders for uri in registries}
    monkeypatch.setattr(models, "fetch", placed.__getitem__)  # in place of a download, which needs the password
    write_photo(tmp_path / "a.png", 0)
    summaries, contents = [], []
    for uri in registries:
        rows = [{"image": "a.png", "prompt": "x"}, {"image": "a.png", "prompt": "y", "lora": f"models:/rain/1#{uri}"}]
        rows.append({"image": "a.png", "prompt": "z", "lora": f"models:/rain/1#{uri}:200"})
        catalog = write_catalog(tmp_path / "catalog.jsonl", rows)
        config = AnimateConfig(
            catalog=catalog, output=str(tmp_path / "out"), model=f"models:/base/1#{uri}", lora=[f"models:/ink/1#{uri}"],
            tracking_uri=tracking_uri, seed=1, **QUICK,
        )  # fmt: skip
        if not summaries:
            make(config)
        summaries.append(animate.run(animate.resolve(config)))
        contents.append(stored(tmp_path / "out"))
    assert summaries[0]["counts"] | {"rejects": 0} == {"rows": 3, "listed": 2, "videos": 2, "rejected": 1, "rejects": 0}
    assert contents[0] == contents[1]  # with a new password, nothing is made again
    assert {path.suffix for path in contents[0]} >= {".parquet", ".json", ".html", ".mp4"}
    assert [path for path, text in contents[0].items() if "Pa55" in text] == []
    assert any("models:/ink/1#http://***@registry" in text for text in contents[0].values())
