"""The journal: a closed list of content-free lines, which never fails, waits or quotes anybody."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import pytest

from freeapi.journal import EVENTS, FRAMES_MAX, LINE_BYTES_MAX, RANKS, Journal, Level
from freeapi.policy.models import ModelTable
from freeapi.spelling import Secret

#: 2026-11-23T15:08:09.25Z in seconds since 1970.
NOW_S = 1_795_446_489.25
CANARY = "canary-7f3a"


class Written:
    """A journal on a text stream, and its lines."""

    def __init__(self, level: Level = "info") -> None:
        self.now_s = NOW_S
        self.stream = StringIO()
        self.journal = Journal(self.stream, level, lambda: self.now_s)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The reading end of a pipe, and the writing end as a text stream, both closed afterwards."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    yield reader, stream
    os.close(reader)
    stream.close()


# --- What is written ------------------------------------------------------------------------------


def test_an_event_is_one_json_line() -> None:
    """A line has the time in UTC, the level, the event and its fields, and nothing else."""
    written = Written()
    written.journal.event("ready", host="::1", port=8080, duration_ms=12.5)
    assert written.stream.getvalue() == (
        '{"ts":"2026-11-23T15:08:09.250Z","level":"info","event":"ready",'
        '"host":"::1","port":8080,"duration_ms":12.5}\n'
    )


def test_the_time_goes_on() -> None:
    """Each line has its own time, within a second, from one to the next, and backwards."""
    written = Written()
    for written.now_s in (NOW_S, NOW_S + 0.5, NOW_S + 1, NOW_S - 86_400):
        written.journal.event("stop")
    assert [line["ts"] for line in written.lines] == [
        "2026-11-23T15:08:09.250Z",
        "2026-11-23T15:08:09.750Z",
        "2026-11-23T15:08:10.250Z",
        "2026-11-22T15:08:09.250Z",
    ]


@pytest.mark.parametrize("level", list(RANKS))
def test_a_level_lets_louder_events_through(level: Level) -> None:
    """Of all events, exactly those at the level or above it are written."""
    written = Written(level)
    for name in EVENTS:
        written.journal.event(name)
    wanted = [name for name, event in EVENTS.items() if RANKS[event.level] >= RANKS[level]]
    assert [line["event"] for line in written.lines] == wanted


def test_a_request_is_written_at_any_level() -> None:
    """FREEAPI_REQUEST_LOG alone decides about requests' lines."""
    written = Written("error")
    written.journal.request(route="chat", model="gpt-4o-mini", status=200, streamed=True, tries=1)
    (line,) = written.lines
    assert (line["event"], line["route"], line["status"]) == ("request", "chat", 200)


@pytest.mark.parametrize("level", ["debug", "error"])
def test_an_unknown_field_is_our_mistake(level: Level) -> None:
    """A field that the event doesn't have asserts, whether or not the level is on."""
    written = Written(level)
    with pytest.raises(AssertionError, match="prompt"):
        written.journal.event("drain", prompt=CANARY)
    with pytest.raises(AssertionError, match="caller"):
        written.journal.request(caller="203.0.113.7")
    with pytest.raises(KeyError):
        written.journal.event("prompt")
    assert written.lines == []


@pytest.mark.parametrize("text", ["two words", "a\nb", '"a"', "it's", "你好", "a\x00", "x" * 1_025])
def test_text_is_our_mistake(text: str) -> None:
    """A field takes one word of visible ASCII: a sentence of a caller's can't be put in."""
    written = Written()
    with pytest.raises(AssertionError):
        written.journal.event("upstream_failure", upstream="openai", label=text)
    assert written.lines == []


def test_a_line_fits_a_pipe() -> None:
    """The most that an event can hold is a line that a pipe takes whole; longer ones assert."""
    written = Written()
    written.journal.request(model="x" * 1_024, **dict.fromkeys(("status", "tries"), 10**18))
    assert len(written.stream.getvalue()) <= LINE_BYTES_MAX
    with pytest.raises(AssertionError):
        written.journal.event("drain", limit_s=[1] * 4_000)  # type: ignore[arg-type]


def test_no_event_has_a_field_for_content_or_callers() -> None:
    """The closed list has no field whose name speaks of a caller or of what was said."""
    fields = {field for event in EVENTS.values() for field in event.fields}
    banned = {"ip", "address", "caller", "token", "key", "prompt", "content", "message", "body",
              "error", "path", "query", "header", "user", "agent"}  # fmt: skip
    assert not fields & banned


# --- Crashes and libraries ------------------------------------------------------------------------


def raised(fail: Callable[[], object]) -> BaseException:
    """What ``fail`` raises."""
    try:
        fail()
    except BaseException as error:
        return error
    raise AssertionError("it didn't fail")


def in_our_code() -> object:
    """Fails two frames deep in a module of the package, with a text of the caller's."""
    return ModelTable([CANARY], 0)  # type: ignore[list-item]


def in_a_chain() -> object:
    """Fails because something else did."""
    try:
        return int(CANARY)
    except ValueError as error:
        raise ExceptionGroup(CANARY, [RuntimeError(CANARY), OSError(CANARY)]) from error


def test_a_crash_says_where_and_nothing_of_what() -> None:
    """Type, and file, line and function of our frames; never the exception's text."""
    written = Written()
    written.journal.crash("connection", raised(in_our_code))
    (line,) = written.lines
    assert (line["level"], line["where"], line["type"]) == ("error", "connection", "AttributeError")
    frames = line["frames"].split(",")
    assert frames[0].startswith("policy/models.py:")
    assert frames[0].endswith(":__init__")
    assert "test_journal" not in line["frames"]
    assert CANARY not in written.stream.getvalue()


def test_a_crash_names_its_cause_and_a_groups_first() -> None:
    """Of a TaskGroup's group the first exception counts, and what it came from is named."""
    written = Written()
    written.journal.crash("task", raised(in_a_chain))
    error = KeyError(CANARY)
    error.__cause__ = ValueError(CANARY)
    written.journal.crash("task", error)
    first, second = written.lines
    assert (first["type"], first["cause"]) == ("RuntimeError", None)
    assert (second["type"], second["cause"]) == ("KeyError", "ValueError")
    assert CANARY not in written.stream.getvalue()


def test_a_crash_without_an_exception_has_a_place() -> None:
    """An event loop may complain without an exception."""
    written = Written()
    written.journal.crash("event_loop", None)
    (line,) = written.lines
    assert line.keys() == {"ts", "level", "event", "where"}


def test_a_deep_crash_is_cut_to_its_inner_frames() -> None:
    """A recursion of ours gives FRAMES_MAX frames: the line still fits."""

    class Deep(StringIO):
        """A stream whose failing write calls the journal again, 50 times."""

        left = 50

        def write(self, text: str) -> int:
            """Recurse through our code, then fail as no stream should."""
            self.left -= 1
            if self.left:
                journal.event("stop")
            raise LookupError(CANARY)

    deep = Deep()
    journal = Journal(deep, "info", lambda: NOW_S)
    error = raised(lambda: journal.event("stop"))
    written = Written()
    written.journal.crash("test", error)
    assert len(written.lines[0]["frames"].split(",")) == FRAMES_MAX


def test_a_secret_isnt_a_value() -> None:
    """A Secret can't be written by accident: it isn't JSON."""
    with pytest.raises(TypeError):
        Written().journal.event("drain", limit_s=Secret("sk-canary"))  # type: ignore[arg-type]


LIBRARIES = f"""
import logging, sys, time, warnings
from freeapi.journal import Journal

Journal(sys.stderr, "info", time.time).capture_libraries()
logging.getLogger("asyncio").error("Task failed: {CANARY}")
logging.getLogger("two words").warning("{CANARY}")
logging.getLogger("asyncio").info("{CANARY}")
warnings.warn("{CANARY}")
try:
    int("{CANARY}")
except ValueError:
    logging.getLogger("lib").exception("{CANARY}")
"""


def test_what_libraries_log_loses_its_words() -> None:
    """A library's records and warnings become events with its name and severity only."""
    source = Path(__file__).parents[1] / "src"
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        del line["ts"], line["level"]
    assert lines == [
        {"event": "library", "logger": "asyncio", "severity": 40},
        {"event": "library", "logger": "unnamed", "severity": 30},
        {"event": "library", "logger": "py.warnings", "severity": 30},
        {"event": "crash", "where": "lib", "type": "ValueError", "cause": None, "frames": ""},
    ]


# --- Where it can't be written --------------------------------------------------------------------


def test_without_a_stream_lines_are_counted() -> None:
    """Python has no stderr where file 2 was closed at the start."""
    journal = Journal(None, "info", lambda: NOW_S)
    journal.event("stop")
    assert journal.dropped == 1


def test_a_line_reaches_a_pipe_at_once(pipe: tuple[int, TextIO]) -> None:
    """No buffer holds a line back."""
    reader, stream = pipe
    journal = Journal(stream, "info", lambda: NOW_S)
    journal.event("stop")
    assert json.loads(os.read(reader, LINE_BYTES_MAX))["event"] == "stop"


def test_a_full_pipe_drops_whole_lines_and_goes_on(pipe: tuple[int, TextIO]) -> None:
    """A reader that stalls neither stops us nor gets half a line; when it reads, lines come again.

    The pipe is a blocking one: without the look before the write, this test would hang.
    """
    reader, stream = pipe
    journal = Journal(stream, "info", lambda: NOW_S)
    sent = 0
    while not journal.dropped:
        journal.event("stop", dropped=sent)
        sent += 1
    journal.event("stop")
    assert journal.dropped == 2
    received = b""
    while received.count(b"\n") < sent - 1:
        received += os.read(reader, 65_536)
    lines = [json.loads(line) for line in received.splitlines()]
    assert [line["dropped"] for line in lines] == list(range(sent - 1))
    journal.event("drain")
    assert json.loads(os.read(reader, LINE_BYTES_MAX))["event"] == "drain"
    assert journal.dropped == 2


def test_a_gone_reader_is_no_error() -> None:
    """When the process that reads our stderr dies, we go on."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        journal = Journal(stream, "info", lambda: NOW_S)
        os.close(reader)
        journal.event("stop")
        assert journal.dropped == 1


def test_a_closed_stream_isnt_written_to(tmp_path: Path) -> None:
    """Once stderr is closed, its number may be somebody's connection: nothing goes there."""
    stream = (tmp_path / "log").open("w")
    number = stream.fileno()
    journal = Journal(stream, "info", lambda: NOW_S)
    stream.close()
    other = os.open(tmp_path / "connection", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, number)
    journal.event("stop")
    assert journal.dropped == 1
    assert (tmp_path / "connection").read_bytes() == b""
    for descriptor in {other, number}:
        os.close(descriptor)


def test_a_closed_text_stream_isnt_written_to() -> None:
    """The same for a stream without a number."""
    written = Written()
    written.stream.close()
    written.journal.event("stop")
    assert written.journal.dropped == 1


def test_a_full_disk_is_no_error() -> None:
    """Where there is no room the line is dropped."""
    with open("/dev/full", "w") as stream:
        journal = Journal(stream, "info", lambda: NOW_S)
        journal.event("stop")
        assert journal.dropped == 1


def test_a_disk_that_fills_up_within_a_line_is_counted(tmp_path: Path) -> None:
    """A line of which only a part could be written counts as dropped."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "log").open("w") as stream:
        journal = Journal(stream, "info", lambda: NOW_S)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
        try:
            journal.event("stop")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.dropped == 1
    assert (tmp_path / "log").stat().st_size == 50
