"""The live line on a real pseudo-terminal: what a person sees, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from freeapi.journal import Journal
from freeapi.live_line import LiveLine, Numbers, open_live_line
from freeapi.metrics import Metrics

COLOURED = {"TERM": "xterm"}
PLAIN = {"TERM": "xterm", "NO_COLOR": "1"}
NOTHING = Numbers(0, 0, 0, 0, 0, None)
BUSY = Numbers(requests=24, tokens=1500, failures=2, streams=3, waiting=1, left_usd=4.25)
DRAWN = "24 req/s | 3 streams | 1 waiting | 1,500 tok/s | $4.25 left | 2 failed (+2)"


class Terminal:
    """A pseudo-terminal: the end that a program writes to, and the one that a person sees."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream: TextIO = os.fdopen(slave, "w")
        self.resize(100)
        self.seen = b""

    def resize(self, columns: int) -> None:
        """As a person who pulls at the window's edge."""
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def line(self, environ: dict[str, str]) -> LiveLine:
        """A live line on it."""
        line = open_live_line(self.stream, environ)
        assert line is not None
        return line

    def look(self) -> list[str]:
        """The rows as they stand now, without colours."""
        os.set_blocking(self._master, False)
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._master, 65_536):
                self.seen += piece
        return rows(self.seen.decode())

    def close(self) -> None:
        """Both ends."""
        self.stream.close()
        os.close(self._master)


def rows(text: str) -> list[str]:
    """What a terminal shows of these bytes: CR, LF, "erase to the end of the line" and letters."""
    shown, column = [""], 0
    for sequence in ("\x1b[31m", "\x1b[0m"):
        text = text.replace(sequence, "")
    while text:
        if text.startswith("\x1b[K"):
            shown[-1], text = shown[-1][:column], text[3:]
            continue
        letter, text = text[0], text[1:]
        if letter == "\r":
            column = 0
        elif letter == "\n":
            shown.append("")
        else:
            shown[-1] = shown[-1][:column] + letter + shown[-1][column + 1 :]
            column += 1
    return shown


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A terminal of 100 columns."""
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_line_is_drawn_in_place(terminal: Terminal) -> None:
    """Each drawing replaces the last one, also when it is shorter."""
    line = terminal.line(PLAIN)
    line.draw(BUSY, NOTHING, 1.0)
    assert terminal.look() == [DRAWN]
    line.draw(NOTHING, NOTHING, 1.0)
    assert terminal.look() == ["0 req/s | 0 streams | 0 waiting | 0 tok/s | 0 failed"]


def test_rates_are_those_of_the_time_that_passed(terminal: Terminal) -> None:
    """A drawing that comes late doesn't show more a second."""
    terminal.line(PLAIN).draw(BUSY, NOTHING, 4.0)
    assert terminal.look()[0].startswith("6.0 req/s")
    assert "375 tok/s" in terminal.look()[0]


def test_lines_of_the_log_stand_above_it(terminal: Terminal) -> None:
    """The journal's lines come out whole, each in a row of its own, and the line stays below."""
    line = terminal.line(PLAIN)
    line.draw(BUSY, NOTHING, 1.0)
    journal = Journal(line.stream, "info", lambda: 0.0)
    journal.event("ready", host="127.0.0.1", port=1, duration_ms=2)
    journal.event("admin_off", port=3)
    first, second, last = terminal.look()
    assert first.startswith('{"ts":')
    assert '"port":1' in first
    assert first.endswith("}")
    assert '"event":"admin_off"' in second
    assert last == DRAWN
    assert journal.dropped == 0


def test_text_without_an_end_of_line_waits_for_it(terminal: Terminal) -> None:
    """What ``print`` writes in pieces isn't cut by the line, and several lines stay together."""
    line = terminal.line(PLAIN)
    line.draw(BUSY, NOTHING, 1.0)
    print("one\ntwo", file=line.stream, end="")
    assert terminal.look() == ["one", DRAWN]
    print("!", file=line.stream)
    assert terminal.look() == ["one", "two!", DRAWN]


def test_line_never_wraps(terminal: Terminal) -> None:
    """In a narrow window the last parts are left out, and a wider one shows them again."""
    line = terminal.line(PLAIN)
    for columns, shown in ((30, "24 req/s | 3 streams"), (76, DRAWN), (75, DRAWN[:-16]), (5, "")):
        terminal.resize(columns)
        line.draw(BUSY, NOTHING, 1.0)
        assert terminal.look() == [shown]
        assert len(shown) < columns


def test_colours_are_for_new_failures_and_those_who_want_them(terminal: Terminal) -> None:
    """New failures are red; with NO_COLOR, or without new ones, nothing is."""
    terminal.line(PLAIN).draw(BUSY, NOTHING, 1.0)
    terminal.line(COLOURED).draw(BUSY, BUSY, 1.0)
    terminal.look()
    assert b"\x1b[31m" not in terminal.seen
    terminal.line(COLOURED).draw(BUSY, NOTHING, 1.0)
    terminal.look()
    assert b"\x1b[31m" in terminal.seen


async def test_it_ends_cleanly(terminal: Terminal) -> None:
    """It is drawn again and again until it is cancelled; then its row is empty."""
    line = terminal.line(PLAIN)
    is_read_again = asyncio.Event()
    readings = iter([NOTHING, BUSY])

    def read() -> Numbers:
        now = next(readings, None)
        if now is None:
            is_read_again.set()
        return now or BUSY

    showing = asyncio.get_running_loop().create_task(line.show(read))
    await is_read_again.wait()
    assert "req/s | 3 streams | 1 waiting" in terminal.look()[0]
    showing.cancel()
    await asyncio.wait([showing])
    assert terminal.look() == [""]


def test_terminal_that_takes_nothing_is_not_waited_for(terminal: Terminal) -> None:
    """With a stopped terminal (Ctrl-S) drawing and logging go on, and what doesn't fit is lost."""
    line = terminal.line(PLAIN)
    for _ in range(2_000):
        line.draw(BUSY, NOTHING, 1.0)
        assert line.write("x" * 99 + "\n") == 100
    terminal.look()
    assert len(terminal.seen) < 300_000
    line.draw(BUSY, NOTHING, 1.0)
    assert terminal.look()[-1] == DRAWN


def test_without_a_terminal_there_is_none(terminal: Terminal) -> None:
    """A pipe, a closed stderr and a dumb terminal get JSON lines as they are."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as pipe, os.fdopen(read):
        assert open_live_line(pipe, PLAIN) is None
    assert open_live_line(pipe, PLAIN) is None  # closed
    assert open_live_line(None, PLAIN) is None
    assert open_live_line(terminal.stream, {"TERM": "dumb"}) is None
    assert open_live_line(terminal.stream, {}) is None


def test_numbers_are_those_of_the_metrics() -> None:
    """The line's numbers are sums over the metrics; a caller's own mistake is no failure."""
    metrics = Metrics(["chat"], ["server_error"])
    metrics.allow(["m"], ["u"])
    metrics.watch("freeapi_queue_waiting_requests", lambda: 4)
    metrics.watch("freeapi_budget_left_usd", lambda: {("all",): 1.5, ("u",): 9.0})
    for label, status, tokens in (
        ("ok", 200, 7),
        ("server_error", 502, None),
        ("bad_request", 400, None),
    ):
        metrics.started()
        metrics.finished(
            endpoint="chat",
            model="m",
            status=status,
            label=label,
            upstream="u",
            tries=1,
            prompt_tokens=tokens,
            completion_tokens=tokens,
        )
    metrics.started()
    metrics.streaming()
    assert Numbers.of(metrics.collect()) == Numbers(3, 14, 1, 1, 4, 1.5)
    assert Numbers.of(Metrics([]).collect()) == NOTHING
