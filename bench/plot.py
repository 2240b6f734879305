"""The recorded figures as a reader sees them: the plot, and the table of docs/performance.md.

Plain SVG, written as text: a panel for each of a few figures, in it a bar for each contender. Its
colours follow the reader's light or dark scheme.

usage: python -m bench.plot
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from bench.contenders import US
from bench.table import Table, short

RECORDED = Path(__file__).with_name("recorded.json")
_DOCS = Path(__file__).parents[1] / "docs"
PLOT, PAGE = _DOCS / "performance.svg", _DOCS / "performance.md"
_FIGURES = re.compile(
    r"(?<=<!-- figures: made by bench/plot.py -->\n).*?(?=<!-- figures end -->)", re.S
)

#: Of all figures those that are drawn, with what a reader needs to know about each.
PANELS = {
    "CPU µs a request, c=64": "CPU time of a request, µs (less is better)",
    "CPU µs a chunk, 1,000 streams": "CPU time of a streamed chunk, µs (less is better)",
    "RSS of an open stream, KB": "Memory of an open stream, KB (less is better)",
    "answers of 256 KB, MB/s of a core": "Answers of 256 KB, MB/s of a core (more is better)",
}
_WIDTH, _LEFT, _RIGHT = 720, 96, 80
_BAR, _GAP, _HEAD = 16, 6, 34
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.head { font-weight: 600; }
.value { font-size: 12px; }
rect { fill: #9aa4af; }
.us { fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  rect { fill: #6e7681; }
  .us { fill: #4493f8; }
}
"""


def drawn(table: Table) -> str:
    """The plot."""
    panels = [
        (PANELS[figure], table.medians(figure)) for figure in PANELS if figure in table.figures
    ]
    lines: list[str] = []
    top = 0
    for title, medians in panels:
        lines.append(f'<text class="head" x="0" y="{top + 22}">{escape(title)}</text>')
        top += _HEAD
        lines += _bars(medians, top)
        top += len(medians) * (_BAR + _GAP) + _GAP
    size = f'width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>chatgpt-freeapi with everything on, and plain reverse proxies</title>"
    return "\n".join([head, title, f"<style>{_STYLE}</style>", *lines, "</svg>", ""])


def _bars(medians: dict[str, float], top: int) -> Iterator[str]:
    most = max(medians.values())
    for row, (name, value) in enumerate(medians.items()):
        y = top + row * (_BAR + _GAP)
        width = max(1.0, (_WIDTH - _LEFT - _RIGHT) * max(0.0, value) / most)
        kind = ' class="us"' if name == US else ""
        yield f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
        yield f'<rect{kind} x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'
        x = _LEFT + width + 6
        yield f'<text class="value" x="{x:.1f}" y="{y + 13}">{short(value)}</text>'


def written(table: Table) -> str:
    """The table in Markdown, and what the machine was."""
    rows = list(table.rows())
    rows.insert(1, ["---", *(["---:"] * (len(rows[0]) - 1))])
    machine = ", ".join(f"{name} {words}" for name, words in table.machine.items())
    plot = f"![Processor time and memory, beside plain proxies]({PLOT.name})"
    return "\n".join(
        [plot, "", *map(_row, rows), "", f"Recorded on: {machine}.", *_notes(table.notes), ""]
    )


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _notes(notes: Iterable[str]) -> list[str]:
    return [f"\n- {note}" for note in notes]


def main() -> None:
    """Make both anew from what is recorded."""
    table = Table.read(RECORDED)
    PLOT.write_text(drawn(table))
    if PAGE.exists():
        PAGE.write_text(_FIGURES.sub(lambda _: written(table), PAGE.read_text()))


if __name__ == "__main__":
    main()
