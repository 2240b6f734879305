"""The journal: one JSON line per event, on stderr, and the only thing here that may log.

What may be written is a closed list: ``EVENTS`` names each event, its level and its fields. A field
holds a number, a word of ours or a name from the configuration, and nothing that a caller or an
upstream chose. ``capture_libraries`` turns what libraries log into events of that kind, too.

What this is not: no metrics, no files, no rotation, no text of exceptions. What stderr leads to is
the operator's business.

Invariants:
- An event or a field outside the list, and a text that isn't one word, is our mistake: it asserts.
- Writing never raises and never waits: a line that doesn't fit now is dropped and counted.
- To a pipe, a line is written whole or not at all, also where several processes share it.
"""

from __future__ import annotations

import logging
import os
import re
import select
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, NamedTuple, TextIO

import msgspec

Level = Literal["debug", "info", "warning", "error"]
Value = str | int | float | bool | None

RANKS: Final[dict[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
#: Bytes. A pipe takes this many at once or none, and says that it is ready only if it has room for
#: as many. Source: POSIX, PIPE_BUF, of which Linux has 4,096; pipe(7).
LINE_BYTES_MAX: Final = 4_096
#: The innermost frames of ours: where it broke and who called. Deeper ones are the event loop's.
FRAMES_MAX: Final = 8
#: All texts of an event together: no white space, quote or control character, so no sentence.
_WORDS: Final = re.compile(r"[!#-&(-_a-~]{0,1024}")
_PACKAGE: Final = os.path.dirname(__file__) + os.sep


class Event(NamedTuple):
    """How loud an event is, and which fields it may have."""

    level: Level
    fields: frozenset[str]


def _event(level: Level, fields: str) -> Event:
    return Event(level, frozenset(fields.split()))


#: The closed list. ``model`` is a name from the table, never what a caller asked for.
EVENTS: Final[dict[str, Event]] = {
    "start": _event("info", "version pid local"),
    "ready": _event("info", "host port duration_ms"),
    "admin_off": _event("warning", "port"),
    "reloaded": _event("info", "upstreams models duration_ms"),
    "reload_refused": _event("error", "problems"),
    "restart_needed": _event("warning", "setting"),
    "worker_ready": _event("info", "worker pid"),
    "worker_exit": _event("warning", "worker status wait_s"),
    "store": _event("error", "label"),
    "store_exit": _event("warning", "status wait_s"),
    "store_unfit": _event("warning", "problems"),
    "drain": _event("info", "limit_s"),
    "stop": _event("info", "dropped"),
    "local_ready": _event("info", "duration_ms"),
    "local_exit": _event("warning", "status wait_s"),
    "upstream_failure": _event("warning", "upstream status label tries wait_s"),
    "one_caller": _event("warning", ""),
    "library": _event("warning", "logger severity"),
    "ledger": _event("error", "label"),
    "cost_above_bound": _event("error", "upstream nanousd"),
    "crash": _event("error", "where type cause frames"),
    "request": _event(
        "info",
        "route model status label streamed duration_ms first_byte_ms prompt_tokens"
        " completion_tokens upstream tries",
    ),
}


class Journal:
    """Writes events at or above a level, and counts the lines that it couldn't write."""

    __slots__ = ("_clock", "_rank", "_second", "_stamp", "_write", "dropped")

    def __init__(self, stream: TextIO | None, level: Level, clock: Callable[[], float]) -> None:
        """``clock`` gives seconds since 1970. Without a stream (stderr closed) all is dropped."""
        self._rank = RANKS[level]
        self._clock = clock
        self._write = _writer(stream)
        self._second, self._stamp = -1.0, ""
        #: Lines.
        self.dropped = 0

    def set_level(self, level: Level) -> None:
        """Write events at or above another level from now on."""
        self._rank = RANKS[level]

    def event(self, name: str, **fields: Value) -> None:
        """Write the event, if its level is on. O(fields)."""
        level, allowed = EVENTS[name]
        assert allowed.issuperset(fields), f"{name} has no {fields.keys() - allowed}"
        if RANKS[level] >= self._rank:
            self._line(name, level, fields)

    def request(self, **fields: Value) -> None:
        """Write a request's line at any level: FREEAPI_REQUEST_LOG has the say, not FREEAPI_LOG."""
        level, allowed = EVENTS["request"]
        assert allowed.issuperset(fields), f"request has no {fields.keys() - allowed}"
        self._line("request", level, fields)

    def crash(self, where: str, error: BaseException | None) -> None:
        """Write where an unexpected exception came from: types and places, never its words.

        Of a group, its first one. An event loop may complain without any: then only ``where``.
        """
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            self.event("crash", where=where)
            return
        cause = error.__cause__ or error.__context__
        self.event(
            "crash",
            where=where,
            type=type(error).__name__,
            cause=None if cause is None else type(cause).__name__,
            frames=",".join(_frames(error.__traceback__)),
        )

    def capture_libraries(self) -> None:
        """Let libraries' own log records (asyncio's quote exceptions) become events without words.

        For the process's start: it replaces what the root logger does. Warnings go the same way.
        """
        logging.basicConfig(handlers=[_Library(self)], level=logging.WARNING, force=True)
        logging.captureWarnings(True)

    def capture_exceptions(self) -> None:
        """Let an exception that nobody catches become a ``crash``: a traceback quotes its words.

        For the process's start: it replaces the hooks of the interpreter and of threads.
        """
        sys.excepthook = lambda kind, error, traceback: self.crash("process", error)
        sys.unraisablehook = lambda given: self.crash("finalizer", given.exc_value)
        threading.excepthook = lambda given: self.crash("thread", given.exc_value)

    def _line(self, name: str, level: Level, fields: dict[str, Value]) -> None:
        texts = "".join([value for value in fields.values() if isinstance(value, str)])
        assert _WORDS.fullmatch(texts), f"{name} was given text"
        head = {"ts": self._timestamp(), "level": level, "event": name}
        line = msgspec.json.encode(head | fields) + b"\n"
        assert len(line) <= LINE_BYTES_MAX, f"{name} was given too much"
        try:
            self._write(line)
        except (OSError, ValueError):
            # ValueError is a closed stream's.
            self.dropped += 1

    def _timestamp(self) -> str:
        """RFC 3339, in UTC. The second's text is kept: to make it is half of a line's cost."""
        second, part = divmod(self._clock(), 1.0)
        if second != self._second:
            self._second = second
            self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._stamp}.{int(part * 1_000):03d}Z"


class _Library(logging.Handler):
    """Keeps of a log record who wrote it and how bad it is."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        name = record.name if _WORDS.fullmatch(record.name) else "unnamed"
        if record.exc_info and record.exc_info[1]:
            self._journal.crash(name, record.exc_info[1])
        else:
            self._journal.event("library", logger=name, severity=record.levelno)


def _writer(stream: TextIO | None) -> Callable[[bytes], object]:
    """How to write a line to the stream, or raise OSError or ValueError at once."""
    if stream is None:
        return _refuse
    try:
        stream.fileno()
    except (OSError, ValueError):
        return lambda line: stream.write(line.decode())
    return lambda line: _write_now(stream, line)


def _refuse(line: bytes) -> None:
    raise BlockingIOError


def _write_now(stream: TextIO, line: bytes) -> None:
    """Write past the stream's buffer, which would keep halves of lines, and wait.

    Raises OSError (also where it would have to wait) or ValueError (the stream is closed).
    """
    # Asked anew each time: a number that was closed may be a caller's connection by now.
    number = stream.fileno()
    # A poll object of its own each time: one can't be used by two threads at once.
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    if os.write(number, line) != len(line):
        raise BlockingIOError


def _frames(traceback: TracebackType | None) -> list[str]:
    """``policy/keys.py:12:choose`` for each frame of this package, the outermost first."""
    frames: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            file = code.co_filename.removeprefix(_PACKAGE)
            frames.append(f"{file}:{traceback.tb_lineno}:{code.co_name}")
        traceback = traceback.tb_next
    return frames[-FRAMES_MAX:]
