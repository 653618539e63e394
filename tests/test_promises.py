"""docs/testing.md tells the truth: it names every test file and every slow test, and nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests import promises

ROOT = promises.ROOT
# Seconds of all rows together: two processes for the 32 minutes that .ci/run has beside installing. A change that needs
# more replaces something.
BUDGET = 2 * 32 * 60


def all_files() -> list[Path]:
    return sorted((ROOT / "tests").rglob("test_*.py"))


def list_tests(path: Path) -> Iterator[tuple[str, bool]]:
    """(FILE::TEST, whether it starts Ray or takes long) of every test in a file."""
    tree = ast.parse(path.read_text())
    whole = " ".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = " ".join([whole, *map(ast.unparse, node.decorator_list)])
            slow = "pytest.mark.ray" in marks or "pytest.mark.long" in marks
            yield f"{path.relative_to(ROOT).as_posix()}::{node.name}", slow


def test_the_page_names_every_test_file_and_every_slow_test_once() -> None:
    named = [row["test"] for row in promises.ROW.finditer(promises.PAGE.read_text())]
    assert len(named) == len(set(named))
    wanted = set()
    for path in all_files():
        tests = list(list_tests(path))
        wanted |= {test for test, slow in tests if slow}
        if not all(slow for _, slow in tests):
            wanted.add(path.relative_to(ROOT).as_posix())
    assert wanted - set(named) == set(), "give each a row in docs/testing.md"
    existing = wanted | {test for path in all_files() for test, _ in list_tests(path)}
    assert set(named) - existing == set(), "rows of tests that are gone"


def test_the_seconds_stay_in_the_budget() -> None:
    assert sum(promises.seconds().values()) < BUDGET
