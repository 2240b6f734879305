"""The line at the bottom of a terminal that says how the running gateway does, once a second.

``LiveLine`` is a stream: what is written to it (the journal's lines, problems of a reload) comes
out whole, above the line. ``show`` draws the line until it is cancelled. Where stderr isn't a
terminal that can redraw a line, there is none (``open_live_line`` says so), and JSON lines go there
as they are.

What this is not: a screen. Lines above stay, the cursor stays visible, and a process that is killed
leaves nothing to repair.

Invariants:
- The event loop never waits for a terminal: it is opened anew as one that doesn't block, and what
  it can't take (Ctrl-S) is dropped.
- The line never wraps, whatever the width; without colours where NO_COLOR is set (no-color.org).
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TextIO, cast

from freeapi.measures import Families, Sample

INTERVAL_S: Final = 1.0
#: Where a terminal doesn't say.
_COLUMNS: Final = 80
#: Control sequences. Source: ECMA-48, EL and SGR.
_ERASE: Final = "\r\x1b[K"
_RED: Final = "\x1b[31m"
_PLAIN: Final = "\x1b[0m"
_SEPARATOR: Final = " | "


class Numbers(NamedTuple):
    """How it stands; totals are since the start of the process."""

    requests: int
    tokens: int
    #: Those that weren't the caller's fault.
    failures: int
    streams: int
    waiting: int
    #: None: spending has no cap.
    left_usd: float | None

    @classmethod
    def of(cls, families: Families) -> Numbers:
        """Out of the metrics, of one process or of several that were merged."""
        outcomes = families["freeapi_requests_total"]
        failed = {labels: n for labels, n in outcomes.items() if labels[-1] in _BLAMED}
        left = families["freeapi_budget_left_usd"]
        return cls(
            requests=int(_sum(outcomes)),
            tokens=int(_sum(families["gen_ai_client_token_usage"])),
            failures=int(_sum(failed)),
            streams=int(_sum(families["freeapi_open_streams"])),
            waiting=int(_sum(families["freeapi_queue_waiting_requests"])),
            left_usd=_last(left["all",]) if ("all",) in left else None,
        )


_BLAMED: Final = frozenset({"gateway", "upstream"})


def _sum(samples: Mapping[tuple[str, ...], Sample]) -> float:
    return sum(map(_last, samples.values()))


def _last(sample: Sample) -> float:
    """A number, or the sum of a histogram."""
    return sample[-1] if isinstance(sample, list) else sample


class LiveLine(io.TextIOBase):
    """The line, and the stream above it. For any thread."""

    def __init__(
        self,
        write: Callable[[bytes], object],
        columns: Callable[[], int],
        *,
        has_colours: bool,
    ) -> None:
        """``write`` raises OSError for what it can't take now; ``columns`` is asked each time."""
        self._write = write
        self._columns = columns
        self._has_colours = has_colours
        self._lock = threading.Lock()
        #: What is at the bottom now.
        self._line = ""
        self._unfinished = ""

    @property
    def stream(self) -> TextIO:
        """Itself, in the type that printing wants: it has all of it that can be written to."""
        return cast(TextIO, self)

    def writable(self) -> bool:
        """It is a stream to write to, and no file: it has no descriptor of its own."""
        return True

    def write(self, text: str) -> int:
        """Put whole lines above the live one; the beginning of a line waits for its end."""
        with self._lock:
            lines, newline, self._unfinished = (self._unfinished + text).rpartition("\n")
            if newline:
                # A terminal in raw mode wants both.
                above = lines.replace("\n", "\r\n")
                self._put(f"{_ERASE}{above}\r\n{self._line}")
        return len(text)

    async def show(self, read: Callable[[], Numbers]) -> None:
        """Draw once a second, until cancelled; then the line is gone."""
        before, before_s = read(), time.monotonic()
        try:
            while True:
                await asyncio.sleep(INTERVAL_S)
                now, now_s = read(), time.monotonic()
                self.draw(now, before, now_s - before_s)
                before, before_s = now, now_s
        finally:
            self.end()

    def draw(self, now: Numbers, before: Numbers, passed_s: float) -> None:
        """What has happened in between, and how it stands."""
        # The last column stays empty: terminals differ in what follows a character there.
        line = fit(_parts(now, before, passed_s), self._columns() - 1)
        if self._has_colours and now.failures > before.failures:
            line = f"{_RED}{line}{_PLAIN}"
        # Back to its beginning: what others print lands there.
        self._replace(f"{line}\r")

    def end(self) -> None:
        """Take the line away; what is written from now on is all that there is."""
        self._replace("")

    def _replace(self, line: str) -> None:
        with self._lock:
            self._line = line
            self._put(_ERASE + line)

    def _put(self, text: str) -> None:
        try:
            self._write(text.encode("utf-8", "replace"))
        except OSError:
            return  # the next second draws it anew


def _parts(now: Numbers, before: Numbers, passed_s: float) -> list[str]:
    """In the order of importance."""
    failures = now.failures - before.failures
    return [
        f"{_rate(now.requests - before.requests, passed_s)} req/s",
        f"{now.streams:,} streams",
        f"{now.waiting:,} waiting",
        f"{_rate(now.tokens - before.tokens, passed_s)} tok/s",
        *([] if now.left_usd is None else [f"${now.left_usd:,.2f} left"]),
        f"{now.failures:,} failed" + (f" (+{failures:,})" if failures else ""),
    ]


def _rate(count: int, passed_s: float) -> str:
    """
    >>> _rate(3, 2.0), _rate(1234, 1.0), _rate(0, 1.0)
    ('1.5', '1,234', '0')
    """
    rate = count / passed_s
    return f"{rate:,.1f}" if 0 < rate < 10 else f"{rate:,.0f}"


def fit(parts: list[str], columns: int) -> str:
    """As many of the first parts as there is room for.

    >>> fit(["1 req/s", "2 streams", "3 waiting"], 22)
    '1 req/s | 2 streams'
    """
    line = ""
    for part in parts:
        longer = f"{line}{_SEPARATOR}{part}" if line else part
        if len(longer) > columns:
            break
        line = longer
    return line


def open_live_line(stream: TextIO | None, environ: Mapping[str, str]) -> LiveLine | None:
    """A live line for this stream; None where it is no terminal that can redraw one."""
    if stream is None or environ.get("TERM", "dumb") == "dumb":
        return None
    try:
        if not stream.isatty():
            return None
        # A description of its own: to set the shared one not to block would do so to the shell's.
        terminal = os.open(
            os.ttyname(stream.fileno()), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except (OSError, ValueError):  # closed, or a terminal of another container
        return None
    return LiveLine(
        lambda data: os.write(terminal, data),
        lambda: _columns(terminal),
        has_colours=not environ.get("NO_COLOR"),
    )


def _columns(terminal: int) -> int:
    try:
        return os.get_terminal_size(terminal).columns or _COLUMNS
    except OSError:
        return _COLUMNS
