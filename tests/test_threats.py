"""THREATS.md names tests that exist, and compares what its script compares."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from bench.http_compare import CASES, SLOW

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "THREATS.md").read_text("utf-8")
LINES_MAX = 150
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def missing(path: str, test: str) -> bool:
    """Whether there is no such file, or no such test in it."""
    file = ROOT / path
    if not file.is_file():
        return True
    tree = ast.parse(file.read_text("utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return bool(test) and test not in {function.name for function in functions}


def rows(text: str, header: str) -> list[list[str]]:
    """The cells of all tables whose header line begins so."""
    found: list[list[str]] = []
    for table in re.findall(rf"^\| {header}.*\n\|[ |-]*\n((?:\|.*\n)+)", text, re.MULTILINE):
        found += [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in table.split("\n")[:-1]
        ]
    return found


def test_every_threat_has_a_test_that_exists() -> None:
    """Each row of the tables of threats names a test, and whatever is named is there."""
    threats = rows(TEXT, "what ")
    assert len(threats) > 20
    assert [threat for threat, _, shown in threats if not NAMED.search(shown)] == []
    named = NAMED.findall(TEXT)
    assert [f"{path}::{test}" for path, test in named if missing(path, test)] == []


@pytest.mark.parametrize("path", ["tests/no.py::", "tests/test_threats.py::test_that_is_not_here"])
def test_missing_test_is_found(path: str) -> None:
    """A file or a test that isn't there is missing."""
    file, _, test = path.partition("::")
    assert missing(file, test)
    assert not missing("tests/test_threats.py", "test_missing_test_is_found")


def test_comparison_has_the_cases_of_its_script() -> None:
    """The table of HTTP servers has a row for each case of the script, in its order."""
    assert [row[0] for row in rows(TEXT, "case ")] == [*CASES, *SLOW]


def test_it_is_short_enough_to_be_read() -> None:
    """At most 150 lines."""
    assert TEXT.count("\n") <= LINES_MAX
