"""The README tells the truth: its commands run, its files exist, its table is what the command prints."""

import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    """Lines of each bash block that use the installed project; make targets have a test of their own."""
    found = [
        [line for line in block.splitlines() if line.startswith(("cinemo ", "python "))] for block in blocks("bash")
    ]
    return [lines for lines in found if lines]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README says is there: photo.jpg, photos.csv and clips/. Jobs are named from the repository's root.

    Small; but of so many clips, eight for a step of the training are left, however many fall into validation by chance.
    """
    from cinemo.synthetic import write_clips
    from cinemo.synthetic.images import photo

    folder = tmp_path_factory.mktemp("readme")
    Image.fromarray(photo("coffee.png")).resize((192, 128)).save(folder / "photo.jpg")
    write_clips(folder / "clips", 8)
    (folder / "photos.csv").write_text(blocks("csv")[0])
    (folder / "ray_jobs").symlink_to(ROOT / "ray_jobs")
    return folder


@pytest.mark.timeout(1200)  # it runs five jobs, which took 620 s beside another long test
@pytest.mark.ray
@pytest.mark.long
def test_the_commands_run_as_they_stand_there(folder: Path) -> None:
    """A block's in their order; two blocks at a time, since none needs what another made."""

    def run(lines: list[str]) -> None:
        for command in lines:
            began = time.monotonic()
            shell = ["bash", "-c", command]
            done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            print(f"{time.monotonic() - began:5.1f} s: {command}")

    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    assert sum(map(len, commands())) >= 6
    # The block that trains takes longest, and begins at once.
    with ThreadPoolExecutor(2) as two:
        list(two.map(run, sorted(commands(), key=lambda lines: "train.py" not in " ".join(lines))))
    for name in (
        "left.mp4",
        "mine.mp4",
        "out/dataset/dataset.json",
        "out/train/model/cinemo.json",
        "style.mp4",
        "out/videos/index.html",
    ):
        assert (folder / name).exists()


def test_make_targets_and_their_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target, rest in re.findall(r"`?make (\w+)((?: [A-Z]+=\S+)*)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        for variable in re.findall(r"([A-Z]+)=", rest):
            assert f"$({variable})" in makefile


def test_everything_in_the_file_tree_exists_and_every_package_is_in_it() -> None:
    tree = blocks("text")[0]
    folder = Path()
    named: set[str] = set()
    for line in tree.splitlines():
        named |= {(folder / extra).as_posix() for extra in re.findall(r"[(; ](\w+\.py):", line)}
        if line.startswith(" " * 8):  # goes on with the line before
            continue
        name = line.split()[0]
        path = Path(name) if not line.startswith(" ") else folder / name
        if not line.startswith(" "):
            folder = Path(name)
        assert (ROOT / path).exists(), path
        named.add(path.as_posix())
    for package in ("cinemo", "pipelines"):
        for inner in (ROOT / package).glob("*/__init__.py"):
            assert f"{package}/{inner.parent.name}" in named, f"{inner.parent} is not in the tree"


def test_pictures_and_links_point_at_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_the_python_example_names_real_arguments() -> None:
    import ast
    import inspect

    from cinemo import CinemoPipeline

    known = {
        "from_pretrained": inspect.signature(CinemoPipeline.from_pretrained).parameters,
        "pipe": inspect.signature(CinemoPipeline.__call__).parameters,
    }
    for node in ast.walk(ast.parse(blocks("python")[0])):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert {keyword.arg for keyword in node.keywords} <= set(known[name])


def test_the_conformance_table_is_what_the_command_prints() -> None:
    done = subprocess.run([sys.executable, "benchmarks/conformance.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (ROOT / "docs" / "method.md").read_text()
    for row in done.stdout.strip().splitlines()[2:]:
        promise, _, bound = (cell.strip() for cell in row.strip("|").split("|"))
        assert re.search(rf"\| {re.escape(promise)} \|[^|]*\| {re.escape(bound)} \|", page), promise


def test_help_of_every_command_in_the_documents_knows_its_flags() -> None:
    """Flags that operations.md and the README show for a job are flags of that job."""
    text = README + (ROOT / "docs" / "operations.md").read_text()
    for job in ("prepare", "train", "animate", "evaluate"):
        shown = subprocess.run(
            [sys.executable, f"ray_jobs/{job}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for command in re.findall(rf"python ray_jobs/{job}\.py([^`]*?)(?:```|\n\n|\npython|\ncinemo|\nray)", text):
            for flag in re.findall(r"--[a-z-]+", shlex.quote(command)):
                assert flag in shown, f"{job}.py has no {flag}"


def test_what_the_failure_table_quotes_is_said_by_the_code() -> None:
    """Sentences of ours in the first column of the table in operations.md."""
    table = (ROOT / "docs" / "operations.md").read_text().partition("## When something fails")[2].partition("\n## ")[0]
    firsts = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    quoted = {text for first in firsts for text in re.findall(r"`([^`]+ [^`]+)`", first)}
    of_ray = {"Failed to download runtime_env file package", "ray status"}
    assert len(quoted - of_ray) >= 4
    sources = [path.read_text() for name in ("cinemo", "pipelines", "ray_jobs") for path in (ROOT / name).rglob("*.py")]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))  # a sentence that goes on in the next line
    for text in quoted - of_ray:
        assert text in code, text
