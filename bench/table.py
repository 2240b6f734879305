"""What was measured: figures by contender, their medians, and how they compare with nginx.

A figure has a value for each round. What is printed, recorded and drawn are medians of rounds; the
ratios are ratios of medians. Nothing here knows how a figure came about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import CORE, NGINX, US

#: Contender to a value a round.
Rounds = dict[str, list[float]]


class Table:
    """Figures in the order in which they were first added, and what went wrong meanwhile."""

    def __init__(self, machine: Mapping[str, str | int]) -> None:
        self.machine = machine
        self.figures: dict[str, Rounds] = {}
        self.wrong: list[str] = []
        self.notes: list[str] = []

    def add(self, figure: str, contender: str, value: float) -> None:
        """One round's value."""
        self.figures.setdefault(figure, {}).setdefault(contender, []).append(value)

    def check(self, contender: str, what: str, wrong: int, words: str = "") -> None:
        """Answers that weren't what they had to be, none if all is well."""
        if wrong:
            problems = self.wrong if contender in CORE else self.notes
            problems.append(f"{contender}, {what}: {wrong} wrong answers {words}".rstrip())

    def contenders(self) -> list[str]:
        """Those with a figure; ourselves and nginx first."""
        seen = {name: None for rounds in self.figures.values() for name in rounds}
        first = [name for name in (US, NGINX) if name in seen]
        return first + [name for name in seen if name not in first]

    def medians(self, figure: str) -> dict[str, float]:
        """The figure by contender."""
        return {name: median(values) for name, values in self.figures[figure].items()}

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {
            "machine": self.machine,
            "figures": self.figures,
            "notes": self.notes,
            "wrong": self.wrong,
        }

    @classmethod
    def read(cls, path: Path) -> Table:
        """What ``as_json`` gave."""
        recorded = json.loads(path.read_text())
        table = cls(recorded["machine"])
        table.figures = recorded["figures"]
        table.notes = recorded["notes"]
        return table

    def rows(self) -> Iterable[list[str]]:
        """The head of the table, then a row a figure; in the last column our ratio to nginx."""
        names = self.contenders()
        yield ["", *names, "times nginx"]
        for figure in self.figures:
            medians = self.medians(figure)
            cells = [short(medians[name]) if name in medians else "-" for name in names]
            yield [figure, *cells, ratio(medians)]


def ratio(medians: Mapping[str, float]) -> str:
    """Ours to nginx's, where both are there and the quotient says something."""
    ours, theirs = medians.get(US), medians.get(NGINX)
    return "" if ours is None or not theirs or theirs < 0 else f"{ours / theirs:.2f}"


def short(value: float) -> str:
    """A number with as many digits as a measurement of this kind deserves."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def printed(rows: Iterable[list[str]]) -> str:
    """Columns for a terminal."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
