"""Markdown as the tests of the documents see it: headings, fenced blocks, code, links.

Not a parser of all of Markdown: only of what stands in this repository's documents.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
DOCUMENTS: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md")))

_BLOCK: Final = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_HEADING: Final = re.compile(r"^(#+) ", re.MULTILINE)
_CODE: Final = re.compile(r"`([^`\n]+)`")
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced block."""

    kind: str
    text: str
    #: Why no test runs it; None: one does.
    reason: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks in order."""
    return [
        Block(match["kind"], textwrap.dedent(match["text"]), match["reason"])
        for match in _BLOCK.finditer(text)
    ]


def prose(text: str) -> str:
    """What is left without fenced blocks."""
    return _BLOCK.sub("", text)


def headings(text: str) -> list[int]:
    """The level of each heading, in order."""
    return [len(level) for level in _HEADING.findall(prose(text))]


def code(text: str) -> set[str]:
    """What stands in backticks."""
    return set(_CODE.findall(prose(text)))


def links(text: str) -> list[str]:
    """Where links lead to."""
    return _LINK.findall(prose(text))


def document(name: str) -> str:
    """The text of a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands below a title, up to the next one of its level or above."""
    level = title.index(" ")
    return re.split(rf"\n#{{1,{level}}} ", text.partition(f"\n{title}\n")[2])[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of each line of each table, heads included."""
    lines = [line for line in prose(text).splitlines() if re.match(r"\|(?!-)", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
