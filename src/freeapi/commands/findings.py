"""The audit's result: one row for each thing that was sent or looked at, for people and machines.

What this is not: a judge. ``canaries.search`` found what there is; here it is put into words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from freeapi.commands.canaries import PLACES, Canary, Finding
from freeapi.commands.tracing import Trace

_CHANNEL_WIDTH: Final = 42
_SENT_WIDTH: Final = 5
_PLACE_WIDTH: Final = 40
_NOWHERE: Final = "nowhere"


class Check(msgspec.Struct, frozen=True):
    """One row."""

    #: What was sent, or which property of the process was looked at.
    channel: str
    #: How many different texts were sent there; 0 for a property.
    sent: int
    #: Where it belongs, or what was expected.
    expected: str
    #: What was found beyond that; empty: nothing.
    found: tuple[str, ...]
    ok: bool


class Report(msgspec.Struct, frozen=True):
    """Everything that the audit has to say."""

    ok: bool
    summary: str
    checks: tuple[Check, ...]
    looked_in: dict[str, int]
    files: tuple[str, ...]
    connections: tuple[str, ...]
    programs: tuple[str, ...]
    notes: tuple[str, ...]
    audit: Literal["freeapi"] = "freeapi"

    def json(self) -> str:
        """For machines: one object."""
        return msgspec.json.encode(self).decode()

    def text(self) -> str:
        """For people: a table and a sentence."""
        lines = [_line(" ", "What we sent or checked", "texts", "Where it may be", "Result")]
        lines += [_row(check) for check in self.checks]
        lines += ["", "Where we looked:"]
        lines += [f"  {count:>9,} {name}" for name, count in self.looked_in.items()]
        for title, names in (
            ("Files it wrote", self.files),
            ("Where it connected to", self.connections),
            ("Programs it started", self.programs),
        ):
            lines.append(f"{title}: {', '.join(names) or 'none'}")
        lines += ["", *(f"Note: {note}" for note in self.notes), "", self.summary]
        return "\n".join(lines)


def _row(check: Check) -> str:
    result = "not found" if check.expected == _NOWHERE else "nowhere else"
    if not check.sent:
        result = "as it should be"
    if not check.ok:
        result = f"FOUND: {'; '.join(check.found)}"
    mark = "✓" if check.ok else "✗"
    return _line(mark, check.channel, str(check.sent or ""), check.expected, result)


def _line(mark: str, channel: str, sent: str, expected: str, result: str) -> str:
    columns = f"{mark} {channel:{_CHANNEL_WIDTH}} {sent:>{_SENT_WIDTH}}"
    return f"{columns}  {expected:{_PLACE_WIDTH}} {result}"


def channel_checks(canaries: Iterable[Canary], found: Sequence[Finding]) -> list[Check]:
    """One row for each channel."""
    channels: dict[str, list[Canary]] = {}
    for canary in canaries:
        channels.setdefault(canary.channel, []).append(canary)
    # First what may be somewhere, the prompt above all; then what may be nowhere.
    first = sorted(channels.items(), key=lambda pair: (not pair[1][0].allowed, pair[0] != "prompt"))
    return [_channel_check(name, sent, found) for name, sent in first]


def _channel_check(channel: str, sent: Sequence[Canary], found: Sequence[Finding]) -> Check:
    places = [name for place, name in PLACES.items() if place in sent[0].allowed]
    names = tuple(
        one.name if one.spelling == "as it is" else f"{one.name} ({one.spelling})"
        for one in found
        if one.channel == channel
    )
    return Check(channel, len(sent), " and ".join(places) or _NOWHERE, names, not names)


def process_checks(trace: Trace, upstream: str, limits: str, exit_code: int | None) -> list[Check]:
    """The rows about what isn't a text.

    ``upstream`` is its address; ``limits`` is ``/proc/PID/limits``.
    """
    core = re.search(r"^Max core file size +(\S+)", limits, re.MULTILINE)
    core_bytes = core[1] if core else "unknown"
    return [
        _check("connections", "to the upstream only", sorted(trace.peers - {upstream})),
        _check("other programs", "none started", trace.programs),
        _check(
            "memory dump on a crash (core file)",
            "off",
            [] if core_bytes == "0" else [f"up to {core_bytes} bytes"],
        ),
        _check(
            "other processes reading its memory",
            "forbidden",
            [] if trace.is_undumpable else ["allowed (PR_SET_DUMPABLE isn't 0)"],
        ),
        _check(
            "its end",
            "in order (exit code 0)",
            [] if exit_code == 0 else [f"exit code {exit_code}"],
        ),
    ]


def _check(name: str, expected: str, found: Iterable[str]) -> Check:
    names = tuple(found)
    return Check(name, 0, expected, names, not names)
