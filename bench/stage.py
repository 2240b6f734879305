"""Many streams at once, from both sides: the upstream that speaks and the callers that listen.

Both are one thread over one epoll, without a task or a transport for each: at 50,000 chunks a
second on one core the load may not be what is slow. One clock serves both, so the time from a
caller's request to its first chunk needs no second process's word.

Plan: chunks fall due at an even pace and go to the streams in turn, so that they come evenly spread
and no timer is needed for each stream. A stream's first chunk comes at once. All that a caller
receives is kept, and compared to the byte with what was sent when nothing is measured any more.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from bench.texts import (
    DONE,
    HEADERS,
    LAST_CHUNK,
    STOP,
    STREAM_HEAD,
    USAGE,
    chunked,
    event,
    post,
    request,
)

#: Where a piece of text says of which stream, and which of its chunks it is.
_PLACE = "SSSSSS-KKKKK"
_BEFORE, _AFTER = chunked(event(_PLACE)).split(_PLACE.encode())
_EVENT_BEFORE, _EVENT_AFTER = event(_PLACE).split(_PLACE.encode())
#: In a prompt: which stream it is, and how many chunks are wanted.
_ASKED = re.compile(rb"stream (\d+) of (\d+) chunks")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
ENDLESS = 99_999
#: Chunks of a stream that may come late; what is later still is left out, since two that come
#: together are passed on as one, and cheaper.
_LATE_MAX = 1
_LISTEN, _READ_BYTES, _TICK_S = 4_096, 16_384, 0.001


class _End(Protocol):
    def on_readable(self) -> None:
        """Take what is there."""


class Way(NamedTuple):
    """Where callers ask, and what they may expect: what they need to know of a contender."""

    name: str
    port: int
    headers: Mapping[str, str] = HEADERS
    #: Whether streams come through to the byte.
    is_exact: bool = True


class Talk:
    """A stream that the upstream is speaking."""

    def __init__(self, end: socket.socket, number: int, chunks: int, *, tells_usage: bool) -> None:
        self.end = end
        self.number = number
        self.chunks = chunks
        self.sent = 0
        self._tail = USAGE + DONE if tells_usage else DONE
        #: What the socket didn't take any more, because its reader doesn't keep up.
        self._rest = b""
        self._is_stopped = False

    def speak(self, before: bytes = b"") -> None:
        """Send the next chunk; not if the socket takes none now."""
        data = _BEFORE + b"%06d-%05d" % (self.number, self.sent) + _AFTER
        if self._send(before + data if before else data):
            self.sent += 1

    def stop(self) -> bool:
        """Send how it ends; False as long as the socket hasn't taken all of it."""
        if not self._is_stopped:
            end = chunked(STOP) + chunked(self._tail) + LAST_CHUNK
            self._is_stopped = self._send(end)
        return self._is_stopped and self._flush()

    def _send(self, data: bytes) -> bool:
        """Whether it went, or will go before anything else does."""
        if not self._flush():
            return False
        self._rest = data
        self._flush()
        return True

    def _flush(self) -> bool:
        if self._rest:
            try:
                self._rest = self._rest[self.end.send(self._rest) :]
            except BlockingIOError:
                return False
            except OSError:  # it is gone; the caller's side will tell
                self._rest = b""
        return not self._rest


class Caller:
    """One who asks for streams, one after another, over one connection."""

    def __init__(self, stage: Stage, way: Way) -> None:
        self.end = socket.create_connection(("127.0.0.1", way.port), timeout=10)
        self.end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.end.setblocking(False)
        self._stage = stage
        self._way = way
        self.number = 0
        self.is_done = self.is_closed = False
        self.begin()
        stage.add(self.end, self)

    def begin(self) -> None:
        """Forget the last stream."""
        self.received = bytearray()
        self.asked_s = self.first_s = 0.0
        self.is_done = False

    def ask(self, number: int, chunks: int) -> None:
        """Ask for a stream."""
        self.begin()
        self.number = number
        words = f"stream {number} of {chunks} chunks"
        body = request(300, stream=True, words=words)
        self.asked_s = time.perf_counter()
        with contextlib.suppress(OSError):  # it is closed: then nothing will come
            self.end.send(post(body, self._way.headers))

    def on_readable(self) -> None:
        try:
            data = self.end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.first_s = 0.0  # broken off: as if it had never come
            self.is_closed = True
            self._stage.forget(self.end)
            return
        count = data.count(b"data:")
        if count and not self.first_s:
            self.first_s = time.perf_counter()
        self._stage.heard += count
        self._stage.reads += 1
        self.received += data
        self.is_done = data.endswith(LAST_CHUNK)

    @property
    def is_over(self) -> bool:
        """Whether nothing will come any more."""
        return self.is_done or self.is_closed

    def problem(self, sent: int) -> str:
        """What is wrong with the stream as it came, nothing if it is right."""
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return f"answered {bytes(self.received[:300])!r}"
        if not self.is_done:
            return f"not ended after {len(self.received)} bytes"
        places = [b"%06d-%05d" % (self.number, number) for number in range(sent)]
        if not self._way.is_exact:
            is_right = re.findall(rb"\d{6}-\d{5}", body) == places
            return "" if is_right else "chunks are missing, or in another order"
        framed = _BEFORE + (_AFTER + _BEFORE).join(places) + _AFTER
        if body.startswith(framed):  # the usual case, twenty times as fast as the general one
            is_right = _unchunked(body[len(framed) :]) == STOP + DONE
        else:
            expected = _EVENT_BEFORE + (_EVENT_AFTER + _EVENT_BEFORE).join(places) + _EVENT_AFTER
            is_right = _unchunked(body) == expected + STOP + DONE
        return "" if is_right else f"other bytes than sent: {body[:300]!r}"


def _unchunked(body: bytes) -> bytes:
    pieces: list[bytes] = []
    begin = 0
    while True:
        line_end = body.index(b"\r\n", begin)
        size = int(body[begin:line_end].partition(b";")[0], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(body[line_end + 2 : line_end + 2 + size])
        begin = line_end + size + 4


class _Upstream:
    """The upstream's end of a connection: reads requests, begins streams."""

    def __init__(self, stage: Stage, end: socket.socket) -> None:
        self._stage = stage
        self._end = end
        self._received = b""

    def on_readable(self) -> None:
        try:
            data = self._end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._stage.forget(self._end)
            return
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if mark and length and len(body) >= int(length[1]):
            self._received = b""
            self._begin(body)

    def _begin(self, body: bytes) -> None:
        asked = _ASKED.search(body)
        if asked is None:
            return
        number, chunks = int(asked[1]), int(asked[2])
        talk = Talk(self._end, number, chunks, tells_usage=b'"include_usage":true' in body)
        talk.speak(STREAM_HEAD)
        self._stage.talks[number] = talk
        self._stage.talking.append(talk)


class Stage:
    """Runs it all for as long as it is told to."""

    def __init__(self, chunks_per_s: float) -> None:
        #: By number of the stream; those that go on, in the order in which they speak.
        self.talks: dict[int, Talk] = {}
        self.talking: list[Talk] = []
        #: Events that the callers have received in all.
        self.heard = 0
        #: In so many reads: more events than reads were merged on their way.
        self.reads = 0
        self.is_ending = False
        self._pace = chunks_per_s
        self._owed = 0.0
        self._turn = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_LISTEN)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._epoll = select.epoll()
        self._ends: dict[int, tuple[socket.socket, _End]] = {}
        self._epoll.register(self._listener, select.EPOLLIN)
        self._last_s = time.perf_counter()

    def reset(self) -> None:
        """Forget the streams that are over; begin anew."""
        self.talks.clear()
        self.talking.clear()
        self.is_ending = False

    def sent(self, caller: Caller) -> int:
        """How many chunks of its stream were sent."""
        talk = self.talks.get(caller.number)
        return talk.sent if talk else 0

    def add(self, end: socket.socket, one: _End) -> None:
        """Watch this socket."""
        self._ends[end.fileno()] = (end, one)
        self._epoll.register(end, select.EPOLLIN)

    def forget(self, end: socket.socket) -> None:
        """Close it."""
        if self._ends.pop(end.fileno(), None):
            end.close()

    def close(self) -> None:
        """Close all."""
        for end, _ in list(self._ends.values()):
            end.close()
        self._listener.close()
        self._epoll.close()

    def run(self, seconds: float) -> None:
        """Let it go on for so long."""
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s:
            self.step(_TICK_S)

    def step(self, wait_s: float) -> None:
        """Take what has come, and say what is due."""
        for number, _ in self._epoll.poll(wait_s):
            if number in self._ends:
                self._ends[number][1].on_readable()
            elif number == self._listener.fileno():
                self._accept()
        now_s = time.perf_counter()
        owed = self._owed + (now_s - self._last_s) * self._pace * len(self.talking)
        self._last_s = now_s
        # Where others take our core we are late, and catch up, but not with all at once.
        due = min(int(owed), len(self.talking))
        self._owed = min(owed - due, float(_LATE_MAX * len(self.talking)))
        self._speak(due)

    def _accept(self) -> None:
        try:
            while True:
                end, _ = self._listener.accept()
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.add(end, _Upstream(self, end))
        except BlockingIOError:
            return

    def _speak(self, due: int) -> None:
        talking = self.talking
        for _ in range(due):
            self._turn = (self._turn + 1) % len(talking)
            talk = talking[self._turn]
            if not self.is_ending and talk.sent < talk.chunks:
                talk.speak()
            elif talk.stop():
                talking[self._turn] = talking[-1]
                talking.pop()
                if not talking:
                    return
