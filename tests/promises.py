"""Reads the table of docs/testing.md: what each test promises, and the seconds it takes.

    python -m tests.promises JUNIT.xml...    # writes measured seconds into the table (make promises)

A row names a test file, or one test of a file (`FILE::TEST`); a file's row stands for its tests without a row.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "testing.md"
ROW = re.compile(r"^\| (?P<promise>[^|]+?) \| `(?P<test>tests/[^`|]+)` \| +(?P<seconds>[\d.]+) \|$", re.MULTILINE)


def seconds() -> dict[str, float]:
    """Seconds of each row of the page, by the test or file that it names."""
    return {row["test"]: float(row["seconds"]) for row in ROW.finditer(PAGE.read_text())}


def row_of(test: str, rows: Iterable[str]) -> str:
    """The row that a test (FILE::TEST) belongs to: its own, else its file's."""
    return test if test in rows else test.partition("::")[0]


def measured(reports: Iterable[Path]) -> Counter[str]:
    """Seconds by test (FILE::TEST, parameters summed up) from pytest's JUnit reports."""
    found: Counter[str] = Counter()
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            file = case.attrib["classname"].replace(".", "/") + ".py"
            found[f"{file}::{case.attrib['name'].partition('[')[0]}"] += float(case.attrib["time"])
    return found


def update(reports: Iterable[Path]) -> None:
    """Write measured seconds into the page. Rows that no report names keep theirs."""
    rows, sums = seconds(), Counter[str]()
    for test, took in measured(reports).items():
        sums[row_of(test, rows)] += took

    def rewrite(row: re.Match[str]) -> str:
        took = sums.get(row["test"], float(row["seconds"]))
        return f"| {row['promise']} | `{row['test']}` | {took:.0f} |"

    PAGE.write_text(ROW.sub(rewrite, PAGE.read_text()))


if __name__ == "__main__":
    update(Path(name) for name in sys.argv[1:])
