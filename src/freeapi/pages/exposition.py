"""All metrics as text: Prometheus' format 0.0.4, or OpenMetrics 1.0 for who asks for it.

Written here and not by prometheus-client: that takes 20 us a line, so a scrape of 2,700 lines would
hold up every stream for 50 ms, and its import brings an HTTP server and client into a process that
holds keys (50 ms, 3 MB). This takes 3 us a line. Its parsers read what we write in the tests.

What this is not: it decides on no name and no value (``measures`` and ``metrics`` do).

Source: prometheus.io, "Exposition formats"; OpenMetrics 1.0.0, without exemplars.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from freeapi.measures import DEFINITIONS, Definition, Families, Labels, Sample

TEXT: Final = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"
OPENMETRICS: Final = b"content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"
_REFUSED: Final = {"q=0", "q=0.0", "q=0.00", "q=0.000"}
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def negotiate(accept: bytes) -> bytes:
    """The content type for a scraper with this ``Accept``: OPENMETRICS or TEXT.

    Whoever takes OpenMetrics at all, in whatever version, gets it: only ``q=0`` says no.
    """
    for offer in accept.decode("ascii", "replace").lower().split(","):
        kind, *parameters = [part.strip() for part in offer.split(";")]
        if kind == "application/openmetrics-text":
            return TEXT if _REFUSED.intersection(parameters) else OPENMETRICS
    return TEXT


def render(families: Families, content_type: bytes) -> bytes:
    """All of them. About 3 us for each line."""
    is_open = content_type == OPENMETRICS
    lines: list[str] = []
    for name, definition in DEFINITIONS.items():
        samples = families[name]
        if samples:
            lines += _head(name, definition, is_open=is_open)
            for labels, sample in samples.items():
                lines += _series(name, definition, labels, sample)
    return "\n".join([*lines, "# EOF\n" if is_open else ""]).encode()


def _head(name: str, definition: Definition, *, is_open: bool) -> Iterator[str]:
    family = name.removesuffix("_total") if is_open else name
    yield f"# HELP {family} {definition.meaning}"
    yield f"# TYPE {family} {definition.kind}"
    if is_open and definition.unit:
        yield f"# UNIT {family} {definition.unit}"


def _series(name: str, definition: Definition, labels: Labels, sample: Sample) -> Iterator[str]:
    shown = ",".join(
        f'{label}="{value.translate(_ESCAPES)}"'
        for label, value in zip(definition.labels, labels, strict=True)
    )
    braced = f"{{{shown}}}" if shown else ""
    if not isinstance(sample, list):
        yield f"{name}{braced} {_number(sample)}"
        return
    *counts, total = sample
    if definition.kind == "histogram":
        comma = "," if shown else ""
        bounds = [*map(_bound, definition.bounds), "+Inf"]
        for bound, count in zip(bounds, accumulate(counts), strict=True):
            yield f'{name}_bucket{{{shown}{comma}le="{bound}"}} {_number(count)}'
    yield f"{name}_count{braced} {_number(sum(counts))}"
    yield f"{name}_sum{braced} {_number(total)}"


def _bound(value: float) -> str:
    """OpenMetrics wants 1.0 for 1, so that a series has one name whoever asks for it."""
    return repr(float(value))


def _number(value: float) -> str:
    """Whole numbers without a fraction.

    >>> [_number(value) for value in (True, 3, 3.0, 0.25, 1e21)]
    ['1', '3', '3', '0.25', '1e+21']
    """
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)
