"""Files and functions stay short enough to be read at once (CONTRIBUTING.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("cinemo", "pipelines", "ray_jobs", "benchmarks", "recipes", "tests")
LONGEST_FILE, LONGEST_FUNCTION = 330, 60
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def source_files() -> Iterator[Path]:
    yield ROOT / "serve_app.py"
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def lines_of(function: FUNCTION) -> int:
    """Count the lines from `def` to the end, without the docstring, which may be a third of them."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_no_file_and_no_function_is_too_long() -> None:
    long = []
    for path in source_files():
        name, source = path.relative_to(ROOT).as_posix(), path.read_text()
        if (lines := len(source.splitlines())) > LONGEST_FILE:
            long.append(f"{name} has {lines} lines, more than {LONGEST_FILE}: split it by subject")
        functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTION))
        long += [
            f"{name}: {function.name} has {lines} lines, more than {LONGEST_FUNCTION}: give its parts names"
            for function in functions
            if (lines := lines_of(function)) > LONGEST_FUNCTION
        ]
    assert long == []
