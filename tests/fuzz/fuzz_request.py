"""Fuzz the request parser: the real ``Connection``, fed bytes through a transport in memory.

Whatever comes, each request that reaches the application is well formed; what doesn't is answered
once, with a documented status in OpenAI's shape, after which nothing more is taken for a request.
However the bytes are cut, the outcome is the same; and whoever stays silent then has a deadline.

Behind two requests with one head the connection knows that head, and takes the next without its
parser: that must make no difference either.

The second opinion is h11's, a parser of another make: of bytes that both accept they must read the
same requests. A difference there is what request smuggling is made of.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import NamedTuple

import h11

from freeapi.errors import FreeApiError
from freeapi.http import wire
from freeapi.http.connection import Connection
from freeapi.http.deadlines import NEVER_S, Deadlines
from freeapi.http.reply import Reply
from freeapi.http.server import Server, ServerLimits
from tests.fuzz.driver import cuts, fuzz
from tests.fuzz.memory_transport import MemoryTransport

BODY_BYTES_MAX = 1_024
LIMITS = ServerLimits(
    body_bytes_max=BODY_BYTES_MAX, connections_max=1, connections_per_address_max=1
)
#: What a connection may answer by itself (DESIGN section 4; issue 5).
STATUSES = {400, 408, 413, 414, 417, 431, 501, 505}
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
PATH = re.compile(rb"\*|/[\x21-\x3e\x40-\x7e]*")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")

SEEDS = (
    b"GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
    b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /c HTTP/1.1\r\nHost: x:80\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;a=b;c="d"\r\nhello\r\n0\r\nx-trailer: t\r\n\r\nHEAD / HTTP/1.1\r\nhost: y\r\n\r\n',
    b"POST /o HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi"
    b"GET / HTTP/1.0\r\n\r\n",
    b"POST http://x/u?q HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: h2c\r\n"
    b"content-length: 2\r\n\r\nhi",
    b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n"
    b"\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nx-a: b\r\n folded\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.1\r\nhost: [::1]:1\r\nx: \xff\r\nx: y\r\nconnection: close\r\n\r\n",
    b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\n\r\n",
)


#: One of the seeds, from which most of what is made up differs in little.
KNOWN = b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"


class Taken(NamedTuple):
    """One request as the application got it."""

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    http10: bool
    keep_alive: bool


class Heard(NamedTuple):
    """What a connection made of its bytes."""

    taken: tuple[Taken, ...]
    refused: tuple[str, ...]
    is_ended: bool


def heard(pieces: list[bytes], *, answers_late: bool = False) -> Heard:
    """Play the event loop to one connection; its answers are checked on the way."""
    taken: list[Taken] = []
    refused: list[FreeApiError] = []
    owed: list[Reply] = []

    def app(request: wire.Request, reply: Reply) -> None:
        headers = tuple(sorted(request.headers.items()))
        taken.append(
            Taken(
                request.method,
                request.path,
                headers,
                request.body,
                request.http10,
                request.keep_alive,
            )
        )
        owed.append(reply)
        if not answers_late:
            owed.pop().send(200, b"", b"")

    deadlines = Deadlines(asyncio.get_running_loop(), 60.0)
    server = Server(app, LIMITS, deadlines, refused=refused.append)
    connection, transport = Connection(server), MemoryTransport()
    connection.connection_made(transport)
    for piece in pieces:
        if not transport.is_closed:
            connection.data_received(piece)
    while owed:
        owed.pop().send(200, b"", b"")
    assert transport.is_closed or connection.deadline_s < NEVER_S, "it would wait for ever"
    is_ended = transport.is_ended
    check_refusals(refused, bytes(transport.written))
    connection.eof_received()
    connection.connection_lost(None)
    deadlines.close()
    return Heard(tuple(taken), tuple(error.label for error in refused), is_ended)


def check_refusals(refused: list[FreeApiError], written: bytes) -> None:
    """At most one, documented, said in OpenAI's shape, and the last thing that was said."""
    assert len(refused) <= 1
    for error in refused:
        assert error.status in STATUSES, f"{error.status} {error.label}"
        assert written.endswith(b"\r\n\r\n" + error.body())
        assert json.loads(error.body())["error"]["message"] == error.message


def check_request(request: Taken) -> None:
    """All that routing and framing rest on is well formed."""
    assert TOKEN.fullmatch(request.method)
    assert PATH.fullmatch(request.path), request.path
    names = [name for name, _ in request.headers]
    assert len(names) <= wire.HEADERS_MAX
    for name, value in request.headers:
        assert TOKEN.fullmatch(name), name
        assert name == name.lower()
        assert VALUE.fullmatch(value), value
    assert request.http10 or b"host" in names
    assert not {b"content-length", b"transfer-encoding"} <= set(names)
    assert len(request.body) <= BODY_BYTES_MAX


def second_opinion(data: bytes) -> tuple[list[tuple[bytes, bytes, bytes]], bool]:
    """Method, target and body of each request as h11 reads them, and whether it read to the end."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(data)
    found: list[tuple[bytes, bytes, bytes]] = []
    try:
        while isinstance(request := parser.next_event(), h11.Request):
            body = b""
            while isinstance(event := parser.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                return found, True
            found.append((request.method, request.target, body))
            parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            parser.send(h11.EndOfMessage())
            if parser.our_state is h11.MUST_CLOSE:
                return found, False
            parser.start_next_cycle()
    except h11.ProtocolError:
        return found, False
    return found, request is h11.NEED_DATA


def check_against(ours: tuple[Taken, ...], data: bytes) -> None:
    """Of what both accept, both read the same; and we see no request where h11 sees none."""
    theirs, is_whole = second_opinion(data)
    for mine, (method, target, body) in zip(ours, theirs, strict=False):
        assert (mine.method, mine.body) == (method, body), "two parsers, two requests"
        assert mine.path in target, "two parsers, two targets"
    assert not is_whole or len(ours) <= len(theirs), "a request that h11 doesn't see"


def check(data: bytes) -> None:
    """The bytes are requests, or refused, and are so however they come."""
    whole = heard([data])
    for request in whole.taken:
        check_request(request)
    check_against(whole.taken, data)
    assert heard([data], answers_late=True) == whole, "it matters when answers come"
    known = heard([KNOWN + KNOWN]).taken
    for pieces in cuts(data):
        assert heard(pieces) == whole, "it matters how the bytes are cut"
        behind = heard([KNOWN, KNOWN, *pieces])
        assert behind == whole._replace(taken=known + whole.taken), "it matters what is known"
    assert heard([data] * 3) == heard([data * 3]), "it matters that it comes again"


if __name__ == "__main__":
    fuzz("request", check, SEEDS)
