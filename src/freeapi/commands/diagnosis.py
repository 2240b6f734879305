"""What ``freeapi doctor`` has to say: findings, each with what to do about it, for people and
machines.

What this is not: a judge. The ``checks_*`` modules look and decide how bad a thing is.

Invariants:
- A problem always has a remedy: who reads it can act on it.
- What wasn't looked at is said to be so, and never counts as ok.
"""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill
from typing import Final, Literal

import msgspec

from freeapi import __version__

Level = Literal["ok", "warning", "problem", "not checked"]
_MARKS: Final[dict[Level, str]] = {"ok": "✓", "warning": "!", "problem": "✗", "not checked": "-"}
_ABOUT_WIDTH: Final = 12
_WIDTH: Final = 100
_INDENT: Final = " " * (_ABOUT_WIDTH + 3)


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    level: Level
    #: What it is about, in a word; an upstream by its name.
    about: str
    text: str
    #: What to do; empty where nothing is to be done.
    remedy: str = ""


def ok(about: str, text: str) -> Finding:
    """As it should be."""
    return Finding("ok", about, text)


def warning(about: str, text: str, remedy: str) -> Finding:
    """It works, and somebody should know."""
    return Finding("warning", about, text, remedy)


def problem(about: str, text: str, remedy: str) -> Finding:
    """It doesn't work, or a promise can't be kept."""
    assert remedy, "who is told of a problem must be told what to do"
    return Finding("problem", about, text, remedy)


def not_checked(about: str, text: str) -> Finding:
    """Nobody looked, and why."""
    return Finding("not checked", about, text)


class Diagnosis(msgspec.Struct, frozen=True):
    """All of it."""

    ok: bool
    summary: str
    findings: tuple[Finding, ...]
    #: Advice that no check can see followed.
    notes: tuple[str, ...]
    doctor: Literal["freeapi"] = "freeapi"
    version: str = __version__

    @classmethod
    def of(cls, findings: Iterable[Finding], notes: Iterable[str] = ()) -> Diagnosis:
        """Of these findings, in their order."""
        found = tuple(findings)
        levels = [finding.level for finding in found]
        problems, warnings = levels.count("problem"), levels.count("warning")
        summary = f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}"
        if skipped := levels.count("not checked"):
            summary += f", {skipped} not checked"
        return cls(not problems, summary, found, tuple(notes))

    def json(self) -> str:
        """For machines: one object."""
        return msgspec.json.encode(self).decode()

    def text(self) -> str:
        """For people: one line each, the remedy below it, and a sentence."""
        lines = [line for finding in self.findings for line in _lines(finding)]
        notes = [_wrapped(f"Note: {note}", "", "  ") for note in self.notes]
        return "\n".join([*lines, "", *notes, *([""] if notes else []), f"{self.summary}."])


def _lines(finding: Finding) -> list[str]:
    head = f"{_MARKS[finding.level]} {finding.about:{_ABOUT_WIDTH}} "
    lines = [_wrapped(finding.text, head, _INDENT)]
    if finding.remedy:
        lines.append(_wrapped(finding.remedy, f"{_INDENT}-> ", f"{_INDENT}   "))
    return lines


def _wrapped(text: str, first: str, later: str) -> str:
    # Names and paths are to be copied, so they aren't cut.
    return fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
