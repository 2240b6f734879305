"""Fuzz the parser of an upstream's answers: the real ``UpstreamConnection`` and its pool.

Whatever an upstream sends, the exchange ends: with a whole answer, or a documented error of the
upstream's. However the bytes are cut, it is the same answer. A connection that saw anything odd is
never used again. Where h11 accepts the answer as well, it reads the same one.

Bytes after a whole answer are the one thing that depends on the cut: in the same read they spoil
the answer (blank lines don't matter to it), in a later one they only close the connection.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import h11

from freeapi.errors import FreeApiError, UpstreamCut, UpstreamGarbage
from freeapi.http.deadlines import Deadlines
from freeapi.http.pool import Origin, Timeouts, UpstreamPool
from freeapi.http.upstream import UpstreamConnection
from tests.fuzz.driver import cuts, fuzz
from tests.fuzz.memory_transport import MemoryTransport

HEAD = b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
TIMEOUTS = Timeouts(connect_s=5.0, first_byte_s=60.0, idle_s=60.0)

SEEDS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nx: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n",
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 401 No\r\ncontent-length: 2\r\nkeep-alive: timeout=3\r\n\r\n{}",
    b"HTTP/1.1 204 No Content\r\n\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nPRI",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 000 X\r\n\r\nhi",
    b"HTTP/1.1 199 X\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
    b"HTTP/1.1 999 \r\ncontent-length: -1\r\n\r\n",
)


class Answer:
    """A sink that notes what it is given and insists on the order."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.is_whole = False

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Noted; there is one, and it is a final one."""
        assert not self.status
        assert status >= 200
        self.status, self.headers = status, dict(headers)

    def on_data(self, data: bytes) -> None:
        """Noted; there is something, after the head and before the end."""
        assert data
        assert self.status
        assert not self.is_whole
        self.body += data

    def on_end(self, data: bytes) -> None:
        """Noted; once, with what came last."""
        assert self.status
        assert not self.is_whole
        self.body += data
        self.is_whole = True


class Heard(NamedTuple):
    """What one exchange came to. ``error`` is empty for a whole answer."""

    error: str
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    #: When the bytes were all there, before their end: it went back into the pool.
    is_reusable: bool


def heard(pieces: list[bytes]) -> Heard:
    """Play the event loop to one exchange, in which the upstream sends this and closes."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 60.0)
    pool = UpstreamPool(Origin(host="127.0.0.1", port=1), TIMEOUTS, deadlines)
    connection, transport, answer = UpstreamConnection(pool), MemoryTransport(), Answer()
    connection.connection_made(transport)
    done = connection.exchange(HEAD, b"{}", answer, loop.time() + 600.0)
    for piece in pieces:
        if not transport.is_closed:
            connection.data_received(piece)
    is_reusable = pool.take() is connection
    assert not is_reusable or answer.is_whole, "a connection in use was handed out"
    if not transport.is_closed:
        connection.eof_received()
    connection.connection_lost(None)
    deadlines.close()
    assert repr(pool) == "<UpstreamPool 0 open, 0 idle>"
    assert done.is_known, "it would wait for ever"
    error = done.error
    assert answer.is_whole is (error is None)
    return Heard(_name(error), answer.status, answer.headers, answer.body, is_reusable)


def _name(error: BaseException | None) -> str:
    if error is None:
        return ""
    assert isinstance(error, FreeApiError), repr(error)
    assert type(error) in {UpstreamCut, UpstreamGarbage}, repr(error)
    return error.label


def second_opinion(data: bytes) -> tuple[int, bytes] | None:
    """Status and body of the answer as h11 reads it; None: it doesn't, or not to the end."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    parser.send(h11.Request(method="POST", target="/v1", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    status, body = 0, b""
    try:
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif event is h11.NEED_DATA:
                parser.receive_data(b"")
            elif not isinstance(event, h11.InformationalResponse):
                return None
    except (h11.ProtocolError, RuntimeError):  # the second: asked again after the end of the bytes
        return None
    return status, body


def check(data: bytes) -> None:
    """The exchange ends in the same way however the bytes come, and as h11 sees it."""
    if not data:
        return
    whole = heard([data])
    theirs = second_opinion(data)
    if theirs is not None:
        assert whole.error != UpstreamCut.label, "a whole answer, taken for a part of one"
        assert whole.error or theirs == (whole.status, whole.body), "two parsers, two answers"
    for pieces in cuts(data):
        other = heard(pieces)
        spoilt = not other.is_reusable and whole.error == UpstreamGarbage.label and not other.error
        is_closed = data.endswith(b"\n") and other == whole._replace(is_reusable=False)
        assert other == whole or is_closed or spoilt, "the cut matters"


if __name__ == "__main__":
    fuzz("upstream", check, SEEDS)
