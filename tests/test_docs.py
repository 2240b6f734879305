"""What the documents say is so: promises have tests, names and links lead somewhere.

Each rule is run over the documents, and over a bad sample too. Settings, routes and fields are the
affair of ``test_reference``, metrics of ``pages/test_monitoring``, commands of ``test_readme``.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from freeapi import errors
from freeapi.cli import main
from freeapi.errors import FreeApiError
from freeapi.settings import ENVIRONMENT
from tests.configs import KEY, read
from tests.documents import DOCUMENTS, ROOT, blocks, code, document, links, prose, section

#: A test as the documents name it.
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
#: The part of PRIVACY.md that is about this software.
PROMISES = "## What this software does"
#: What may stand before a command.
SETTINGS = r"(?:[A-Z_]+=\S+ )*"
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
    return document("PRIVACY.md")


def unknown_variables(text: str) -> set[str]:
    """Names that look like our variables and aren't."""
    found = re.findall(r"\b(?:FREEAPI|OPENAI_API|OPENAI_BASE)_[A-Z_]+\b", text)
    return set(found) - {row.name for row in ENVIRONMENT}


def lines_of_code(text: str) -> list[str]:
    """What stands in backticks, and each line of the blocks."""
    return [*code(text), *(line for block in blocks(text) for line in block.text.splitlines())]


def commands(text: str) -> set[tuple[str, ...]]:
    """Our commands, each with its options: ``("serve", "--workers")``."""
    pattern = re.compile(rf"{SETTINGS}(?:\.venv/bin/)?freeapi ([a-z]+)((?: --[a-z]+)*)")
    found = (pattern.match(line) for line in lines_of_code(text))
    return {(match[1], *match[2].split()) for match in found if match}


def targets(text: str) -> set[str]:
    """What make is told to make."""
    pattern = re.compile(rf"{SETTINGS}make {SETTINGS}([a-z]+)")
    return {match[1] for line in lines_of_code(text) if (match := pattern.match(line))}


def dead_links(path: Path, text: str) -> list[str]:
    """Links within the repository that lead to no file, or to no heading of it."""
    dead = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = (path.parent / name) if name else path
        if re.match(r"\w+:", link) or (target.exists() and not anchor):
            continue
        if not target.exists() or anchor not in anchors(target.read_text(encoding="utf-8")):
            dead.append(link)
    return dead


def anchors(text: str) -> set[str]:
    """What GitHub makes of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


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
    described = described_errors(document("docs/errors.md"))
    assert described == {(kind.status, kind.code) for kind in kinds_of_error()}


def test_every_variable_is_in_the_example() -> None:
    """.env.example has each setting with its default, and no other."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    lines = re.findall(r"^# ([A-Z_]+)=(.*)$", text, re.MULTILINE)
    assert dict(lines) == {row.name: row.default or "" for row in ENVIRONMENT}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_variables_that_documents_name_are_there(path: Path) -> None:
    """No document names a variable that was renamed: it would stop the start."""
    assert unknown_variables(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_documents_name_are_there(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command and each option of it that a document names is one that the program knows."""
    for name, *options in sorted(commands(path.read_text(encoding="utf-8"))):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert ended.value.code == 0, f"freeapi {name}"
        assert [option for option in options if option not in shown] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_targets_that_documents_name_are_there(path: Path) -> None:
    """Each ``make`` in a document is one of the Makefile's."""
    made = set(re.findall(r"^([a-z]+):", document("Makefile"), re.MULTILINE))
    assert targets(path.read_text(encoding="utf-8")) <= made


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Each link to a file of this repository, and to a part of it, leads there."""
    assert dead_links(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "number"),
    [
        pytest.param(path, number, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(blocks(path.read_text(encoding="utf-8")))
        if block.kind == "toml"
    ],
)
def test_configurations_of_the_documents_load(path: Path, number: int) -> None:
    """Every freeapi.toml that is shown can be used as it is, given the secrets it refers to."""
    toml = blocks(path.read_text(encoding="utf-8"))[number].text
    secrets = dict.fromkeys(re.findall(r'keys_env = "(\w+)"', toml), KEY)
    config = read({**secrets, "PROXY_AUTH": "user:password"}, toml)
    assert config.models


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
    text = "`tests/test_docs.py::test_none` `tests/none.py::test_a` `tests/test_docs.py::unproven`"
    assert missing_tests(text) == ["tests/test_docs.py::test_none", "tests/none.py::test_a"]


def test_table_of_errors_is_read() -> None:
    """Several statuses of one code are several errors."""
    table = "| 400, 417 | `bad` | a |\n| x | `no` | b |\n| 429 | `slow` | c |\n"
    assert described_errors(table) == {(400, "bad"), (417, "bad"), (429, "slow")}


def test_unknown_variable_is_found() -> None:
    """A variable that isn't ours but looks like it is reported."""
    assert unknown_variables("`FREEAPI_PORT` `FREEAPI_LOG`") == {"FREEAPI_PORT"}


def test_commands_and_targets_are_found() -> None:
    """They are read from spans and blocks of code, with their options, and not from prose."""
    text = "freeapi no, `-n freeapi no`, make no, `A=b make run`, `.venv/bin/freeapi a --b --c d`"
    text += "\n```sh\nmake x\n```\n"
    assert commands(text) == {("a", "--b", "--c")}
    assert targets(text) == {"run", "x"}


def test_dead_link_is_found() -> None:
    """A file or heading that isn't there is reported; other sites aren't looked at."""
    text = "# A b\n[a](none.md) [b](README.md) [c](https://a.b) [d](#a-b) [e](README.md#no)"
    assert dead_links(ROOT / "README.md", text) == ["none.md", "#a-b", "README.md#no"]
