"""Who may import whom: the table of docs/architecture.md, read from the source files."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"ray", "mlflow", "deepspeed", "fastapi"}
# Frameworks that each file of a layer may import; a name not listed may import none.
ALLOWED = {
    "cinemo": set(),
    "pipelines": {"ray"},
    "pipelines/training": {"ray", "deepspeed"},
    "pipelines/tracking.py": {"mlflow"},
    "pipelines/serving": {"ray", "fastapi"},
    "ray_jobs": {"ray"},
    "serve_app.py": {"ray"},
}
LEAVES = ("motion.py", "residual.py", "dctinit.py", "videofile.py", "videowrite.py", "image.py")


def imported(path: Path) -> set[str]:
    """Top-level names and full names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def source_files() -> list[Path]:
    folders = ("cinemo", "pipelines", "ray_jobs")
    return sorted([p for folder in folders for p in (ROOT / folder).rglob("*.py")] + list(ROOT.glob("serve_app.py")))


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_frameworks_stay_in_their_layer(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    rule = max((prefix for prefix in ALLOWED if name.startswith(prefix)), key=len)
    tops = {full.split(".")[0] for full in imported(path)}
    assert tops & FRAMEWORKS <= ALLOWED[rule], f"{name} may import {ALLOWED[rule] or 'no framework'}"
    if name.startswith("cinemo/"):
        assert not tops & {"pipelines", "ray_jobs", "recipes", "pyarrow", "pydantic"}
    if name.startswith("pipelines/"):
        assert "ray_jobs" not in tops


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_modules_import_nothing_of_ours(name: str) -> None:
    assert not {full for full in imported(ROOT / "cinemo" / name) if full.split(".")[0] == "cinemo"}


def best_seconds(command: list[str], bound: float, tries: int = 10) -> float:
    """The fastest of a few runs, because a busy machine only ever adds; no more runs once one is under the bound."""
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        best = min(best, time.perf_counter() - began)
        if best < bound:
            break
    return best


@pytest.mark.parametrize("command", [["-c", "import cinemo"], ["-m", "cinemo.cli", "--help"]])
def test_start_up_is_under_half_a_second_and_loads_no_torch(command: list[str]) -> None:
    assert best_seconds([sys.executable, *command], 0.5) < 0.5
    shown = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in shown.stderr.splitlines()}
    assert not loaded & {"torch", "diffusers", "transformers", "ray", "av", "skimage"}
