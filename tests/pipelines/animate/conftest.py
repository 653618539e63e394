"""What the tests of the catalog job share: photos, a catalog of them, settings that are quick, rows without Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from pipelines.animate import files, flow, listing, plan, rows
from pipelines.animate import job as animate
from pipelines.animate.config import AnimateConfig
from pipelines.animate.records import light, table
from pipelines.core import models
from pipelines.dataset import manifest

# Few steps, few frames and the fewest cells: a video takes less than a second.
QUICK: dict[str, Any] = {"size": "64x64", "num_frames": 4, "num_inference_steps": 2, "guidance_scale": 1.0}


def write_photo(path: Path, number: int) -> Path:
    """One of many different photos."""
    top, left = 10 * (number % 30), 7 * (number // 30)
    Image.fromarray(astronaut()[top : top + 96, left : left + 120]).save(path)
    return path


def write_catalog(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def config(tmp_path: Path, checkpoint: Path) -> AnimateConfig:
    """Three rows, each with a photo and a prompt of its own."""
    lines = []
    for number in range(3):
        write_photo(tmp_path / f"{number}.png", number)
        lines.append({"image": f"{number}.png", "prompt": f"prompt {number}", "seed": number})
    catalog = write_catalog(tmp_path / "catalog.jsonl", lines)
    made = AnimateConfig(catalog=catalog, output=str(tmp_path / "out"), model=str(checkpoint), batch=2, **QUICK)
    return animate.placed(made)


def tasks_of(config: AnimateConfig) -> list[dict[str, Any]]:
    """The rows of OUT/catalog, in the catalog's order."""
    planned = plan.write(config, animate.resolve(config).model, f"{config.output}/catalog")
    slices = manifest.slices(planned.files).to_pylist()
    return sorted((task for part in slices for task in manifest.read_slice(**part)), key=lambda task: task["row"])


def directly(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def ready(config: AnimateConfig) -> list[dict[str, Any]]:
    """The rows of a catalog with their pixels."""
    made = plan.made_with(config, animate.resolve(config).model)
    return [rows.prepare(task, made, directly) for task in tasks_of(config)]


def make_animator(config: AnimateConfig, ledger: flow.Ledger | None = None) -> Any:
    from pipelines.animate.replica import Animator

    ledger = ledger or flow.Ledger()
    return Animator(config, flow.model_facts(config, models.look_up(config.model)), ledger)


def animate_plain(config: AnimateConfig) -> dict[str, Any]:
    """The reference for the catalog job: one process, no Ray. Writes what the job would; returns its summary."""
    config = animate.placed(config)
    prepared, seen = ready(config), set()
    for row in (row for row in prepared if not row["reason"]):
        if row["id"] in seen:
            row |= {**light(row), "twin": True}
        seen.add(row["id"])
    writer = listing.Writer(config.output, config.ending)
    for part in make_animator(config)(table(prepared)):
        for row in part.to_pylist():
            writer.add(files.write(row, config.output, config.ending) if row["frames"] else row)
    writer.close()
    # Finds every row listed, so it starts no dataflow and only writes gallery and summary.
    return animate.run(animate.resolve(config))


def frames_of(row: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(row["frames"], np.uint8).reshape(4, 64, 64, 3)
