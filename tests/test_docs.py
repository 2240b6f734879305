"""What the documents say is so: promises have tests, and settings and errors are all described.

Each rule is run over the documents, and over a bad sample too.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeapi import errors
from freeapi.errors import FreeApiError
from freeapi.settings import ENVIRONMENT

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
#: A test as the documents name it.
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
#: The part of PRIVACY.md that is about this software.
PROMISES = "## What this software does"
#: One sentence with the tests that show it.
PROMISE = re.compile(rf"- (?:(?!\. [A-Z]).)+ \((?:{TEST.pattern}(?:, )?)+\)\.")


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """The names of all functions in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def missing_tests(text: str) -> list[str]:
    """The tests that the text names and that aren't there."""
    return [
        f"{path}::{name}"
        for path, name in TEST.findall(text)
        if not (ROOT / path).is_file() or name not in functions_of(ROOT / path)
    ]


def section(text: str, title: str) -> str:
    """What stands below a title, up to the next one of its level."""
    return text.partition(f"\n{title}\n")[2].partition("\n## ")[0]


def unproven(promises: str) -> list[str]:
    """The list items that aren't one sentence with a test."""
    items = [line for line in promises.splitlines() if line.startswith(("- ", "* "))]
    return [item for item in items if not PROMISE.fullmatch(item)]


def kinds_of_error() -> Iterator[type[FreeApiError]]:
    """Every class of the family."""
    waiting: list[type[FreeApiError]] = [FreeApiError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__ == errors.__name__:
            yield kind


def described_errors(text: str) -> set[tuple[int, str]]:
    """Status and code of each row of the table of errors."""
    rows = re.findall(r"^\| ([\d, ]+) \| `(\w+)` \|", text, re.MULTILINE)
    return {(int(status), code) for statuses, code in rows for status in statuses.split(", ")}


def privacy() -> str:
    """PRIVACY.md."""
    return (ROOT / "PRIVACY.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_documents_name_are_there(path: Path) -> None:
    """No document refers to a test that was renamed or never written."""
    assert missing_tests(path.read_text(encoding="utf-8")) == []


def test_every_promise_of_privacy_names_its_test() -> None:
    """Each item of PRIVACY.md's part about this software is one sentence and its tests."""
    promises = section(privacy(), PROMISES)
    assert promises.count("\n- ") > 15
    assert unproven(promises) == []


def test_privacy_is_short() -> None:
    """A document of promises that nobody reads promises nothing."""
    assert privacy().count("\n") <= 90


@pytest.mark.parametrize("words", ["30 days", "Cloud Run", "zero data retention", "prompt cache"])
def test_privacy_tells_what_others_may_keep(words: str) -> None:
    """What isn't ours to promise is said plainly."""
    assert words in section(privacy(), "## What others may keep").replace("\n  ", " ")


def test_every_error_is_described_and_no_other() -> None:
    """docs/errors.md has each status and code that there is, and no other."""
    described = described_errors((ROOT / "docs" / "errors.md").read_text(encoding="utf-8"))
    assert described == {(kind.status, kind.code) for kind in kinds_of_error()}


def test_every_variable_is_in_the_example() -> None:
    """.env.example has each setting with its default, and no other."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    lines = re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE)
    assert dict(lines) == {row.name: row.default or "" for row in ENVIRONMENT}


@pytest.mark.parametrize(
    "bad",
    [
        "- We keep nothing.",
        "- We keep nothing (`tests/test_docs.py::test_privacy_is_short`)",
        "- We keep nothing. We mean it (`tests/test_docs.py::test_privacy_is_short`).",
        "- We keep nothing (tests/test_docs.py::test_privacy_is_short).",
    ],
)
def test_promise_without_its_test_is_found(bad: str) -> None:
    """A promise without a test, or two promises in one item, is reported."""
    good = "- We keep nothing (`tests/test_docs.py::test_privacy_is_short`)."
    assert unproven(f"{good}\n{bad}\n") == [bad]


def test_missing_test_is_found() -> None:
    """A test that isn't in its file, and a file that isn't there, are reported."""
    text = "`tests/test_docs.py::test_none` `tests/none.py::test_a` `tests/test_docs.py::section`"
    assert missing_tests(text) == ["tests/test_docs.py::test_none", "tests/none.py::test_a"]


def test_table_of_errors_is_read() -> None:
    """Several statuses of one code are several errors."""
    table = "| 400, 417 | `bad` | a |\n| x | `no` | b |\n| 429 | `slow` | c |\n"
    assert described_errors(table) == {(400, "bad"), (417, "bad"), (429, "slow")}
