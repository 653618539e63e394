"""What `ray job submit --working-dir .` sends: the code, under 2 MB; the weights are those of an installed package."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.test_cluster import ROOT, check_builds
from tests.deploy.test_kubernetes import installed

LIMIT = 2_000_000  # bytes


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip that Ray makes of the checkout, by Ray's own code."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    path = tmp_path_factory.mktemp("package") / "working_dir.zip"
    create_package(str(ROOT), path, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    return path


@pytest.fixture(scope="module")
def unpacked(package: Path) -> Path:
    """What a node makes of it."""
    folder = package.parent / "unpacked"
    zipfile.ZipFile(package).extractall(folder)
    return folder


def find_builtin(working_dir: Path, *installed: Path) -> tuple[int, str]:
    """(exit code, what was said) of Python in a working directory, with these folders of packages and no others."""
    paths = os.pathsep.join(map(str, installed))
    script = "import cinemo.builtin as b; print(b.__file__); print(b.find('builtin:tiny'))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        cwd=working_dir,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_it_is_small_and_has_all_of_the_code(package: Path) -> None:
    assert package.stat().st_size < LIMIT
    sent = set(zipfile.ZipFile(package).namelist())
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    code = [name for name in kept if name.endswith(".py") and name.startswith(("cinemo/", "pipelines/", "ray_jobs/"))]
    assert len(code) > 50
    assert {*code, "serve_app.py"} <= sent
    assert not [name for name in sent if name.startswith(("tests/", "out/", ".git/", ".venv/"))]


def test_the_weights_of_an_installed_package_serve_the_code_that_was_sent(unpacked: Path, tmp_path: Path) -> None:
    """The package is installed as the Dockerfile does it, from the files that it copies and no others."""
    wheel = check_builds(installed(), tmp_path)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code, said = find_builtin(unpacked, tmp_path / "site")
    assert code == 0, said
    assert said.split() == [str(unpacked / "cinemo/builtin/__init__.py"), str(tmp_path / "site/cinemo/builtin/tiny")]
    alone = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    script = "import sys, cinemo.cli; print(cinemo.__file__); sys.argv[1:] = ['--help']; cinemo.cli.main()"
    command = [sys.executable, "-c", script]
    shown = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True).stdout
    assert shown.startswith(str(tmp_path / "site"))
    assert "run from a checkout" in " ".join(shown.split())


def test_the_weights_of_a_checkout_serve_where_pip_installed_a_pointer_to_it(unpacked: Path, tmp_path: Path) -> None:
    """As `make` does: pip writes down where the checkout is (PEP 610)."""
    record = tmp_path / "cinemo-0.1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.4\nName: cinemo\nVersion: 0.1.0\n")
    (record / "direct_url.json").write_text(json.dumps({"dir_info": {"editable": True}, "url": ROOT.as_uri()}))
    code, said = find_builtin(unpacked, tmp_path)
    assert code == 0, said
    assert said.split()[-1] == str(ROOT / "cinemo/builtin/tiny")


def test_without_an_installed_package_the_sentence_says_what_to_do(unpacked: Path) -> None:
    code, said = find_builtin(unpacked)
    assert code == 1
    assert said.strip().endswith(
        "install the project on every node (pip install, in a checkout), or name another model"
    )
