"""Who may import whom: the table of docs/architecture.md, read from the source files."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = {"ray", "mlflow", "deepspeed", "fastapi"}
# Frameworks that each file of a layer may import; a name not listed may import none.
ALLOWED = {
    "cinemo": set(),
    "pipelines": {"ray"},
    "pipelines/train/": {"ray", "deepspeed"},
    "pipelines/core/tracking.py": {"mlflow"},
    "pipelines/serving": {"ray", "fastapi"},
    "ray_jobs": {"ray"},
    "serve_app.py": {"ray"},
}
# Packages of pipelines/, from the top floor to the bottom: each imports from floors below its own, and from itself.
FLOORS = (("train", "evaluate", "serving"), ("animate", "prepare"), ("sources",), ("dataset",), ("core",))
LEAVES = (
    "motion.py",
    "residual.py",
    "dctinit.py",
    "hdr.py",
    "animated_images.py",
    "videotimes.py",
    "provenance.py",
    "imagefile.py",
    "mistaken.py",
)


def imported(path: Path) -> set[str]:
    """Top-level names and full names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules() -> dict[str, set[str]]:
    """Every module of pipelines/ -> those modules of it that it imports, wherever in the file, for types alone too."""
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "pipelines").rglob("*.py")}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in files:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {one if one in files else node.module for one in full}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & set(files)
    return graph


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


def test_no_module_imports_from_its_own_floor_or_from_above() -> None:
    floor_of = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    assert set(floor_of) == {path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert {path.name for path in (ROOT / "pipelines").glob("*.py")} == {"__init__.py"}
    for name, others in modules().items():
        for other in others:
            own, package = name.split(".")[1], other.split(".")[1]
            assert own == package or floor_of[own] < floor_of[package], f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        list(TopologicalSorter(modules()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", LEAVES)
def test_leaf_modules_import_nothing_of_ours(name: str) -> None:
    assert not {full for full in imported(ROOT / "cinemo" / name) if full.split(".")[0] == "cinemo"}


# What `cinemo --help` may load: typer, and what typer prints with. benchmarks/startup.py measures the seconds.
LIGHT = {"annotated_doc", "attr", "click", "cinemo", "markdown_it", "mdurl", "pygments", "rich", "shellingham", "typer"}


def loaded_packages(*arguments: str) -> set[str]:
    """Installed packages that Python loads when it is run with these arguments."""
    command = [sys.executable, "-X", "importtime", *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in shown.splitlines()} & set(
        packages_distributions()
    )


@pytest.mark.parametrize(
    ("arguments", "light"), [(["-c", "import cinemo"], {"cinemo"}), (["-m", "cinemo.cli", "--help"], LIGHT)]
)
def test_start_up_loads_no_torch_and_no_other_large_package(arguments: list[str], light: set[str]) -> None:
    loaded = loaded_packages(*arguments) - loaded_packages("-c", "")
    assert "cinemo" in loaded
    assert loaded <= light
