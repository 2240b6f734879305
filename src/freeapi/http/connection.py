"""One caller's socket: bytes to requests, replies to bytes.

Driven by callbacks of the event loop and of the parser. A request is parsed only when the one
before is answered, so answers leave in order and a pipelining caller holds a bounded number of
bytes here.

Invariants:
- ``_reply`` is the one unanswered request, or None; nothing is parsed while it is set.
- After an error in framing nothing more is parsed; the connection closes (RFC 9112 section 9.6).
- When the caller goes, ``reply.on_gone`` runs in the same callback, before anything else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from freeapi.errors import (
    BadHttp,
    BodyTooLarge,
    CapacityExceeded,
    FreeApiError,
    HeadTooLarge,
    HttpVersionNotSupported,
    NotImplementedHttp,
    RequestTimeout,
    TargetTooLong,
)
from freeapi.http import wire
from freeapi.http.deadlines import NEVER_S
from freeapi.http.reply import Reply

if TYPE_CHECKING:
    from freeapi.http.server import Server

#: Fed to the parser at once while a head is being read. Bounds both what a head can grow to and
#: how many pipelined requests are parsed ahead (about 600 of the shortest).
_SLICE_BYTES = wire.HEAD_BYTES_MAX
#: Bytes of further requests kept while one is being answered; then reading stops.
_AHEAD_BYTES_MAX = 65_536
#: How long a refused caller's bytes are read and thrown away, so that it sees the answer and not a
#: reset (RFC 9112 section 9.6; nginx's lingering_timeout is 5 s too).
_LINGER_S = 5.0


class Connection(asyncio.Protocol):
    """One caller's socket."""

    __slots__ = (
        "_begun",
        "_body",
        "_body_length",
        "_broken",
        "_expected_bytes",
        "_head_done",
        "_head_is_split",
        "_lingering",
        "_loop",
        "_parser",
        "_peer",
        "_pumping",
        "_reading",
        "_ready",
        "_reply",
        "_request",
        "_server",
        "_target",
        "_trailer_bytes",
        "_transport",
        "_unparsed",
        "_unsent_bytes",
        "_waiting_bytes",
        "deadline_s",
        "network",
        "writable",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        #: Parsed from the same bytes as the request in hand, and waiting for it.
        self._ready: deque[wire.Request] = deque()
        self._unparsed = b""
        #: Why nothing more can be parsed; answered once the requests before it are.
        self._broken: FreeApiError | None = None
        #: A message's first byte has come, and not yet its last; empty lines before it don't count.
        self._begun = False
        self._request = wire.Request(wire.Peer(""))
        self._target = b""
        self._head_done = False
        #: Its message began in an earlier slice, so it may be too large.
        self._head_is_split = False
        #: Fed for a message since its last byte of body, or without its whole head.
        self._waiting_bytes = 0
        self._expected_bytes = 0
        self._trailer_bytes = 0
        self._body: list[bytes] = []
        self._body_length = 0
        self._pumping = False
        self._reading = True
        self._lingering = False
        self.writable = True
        #: When it was last looked at, of a caller who doesn't keep up.
        self._unsent_bytes = 0
        self.deadline_s = NEVER_S
        self._peer = wire.Peer("")
        #: What connections are counted by.
        self.network = ""

    # --- asyncio's callbacks ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        self._peer = wire.Peer(peername[0] if isinstance(peername, tuple) else "")
        self.network = wire.network(self._peer.address)
        self.deadline_s = self._loop.time() + self._server.limits.head_s
        if not self._server.admit(self):
            self._refuse(CapacityExceeded(retry_after_s=1))

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        self._unparsed = self._unparsed + data if self._unparsed else data
        if self._reply is None and self.writable:
            self._pump()
        elif len(self._unparsed) > _AHEAD_BYTES_MAX:
            self._set_reading(False)

    def eof_received(self) -> None:
        """The caller will send no more; the transport then closes by itself.

        While it is owed an answer it counts as gone, as with nginx: a closed connection looks the
        same from here.
        """
        is_owed = self._reply is not None
        self._lose()
        if is_owed:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose()
        self._transport = None
        self._server.forget(self)
        # Its callbacks are ours: a cycle, which would keep the last body until it is collected.
        del self._parser

    def _lose(self) -> None:
        reply, self._reply = self._reply, None
        self._ready.clear()
        self._unparsed = b""
        self._lingering = True
        if reply is not None:
            reply.gone()

    def pause_writing(self) -> None:
        self.writable = False
        self._watch_unsent()
        if self._reply is not None and self._reply.source is not None:
            self._reply.source.pause_reading()

    def _watch_unsent(self) -> None:
        """Look again later whether the caller has taken something meanwhile."""
        assert self._transport is not None, "only an open connection has something unsent"
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self.deadline_s = self._loop.time() + self._server.limits.stalled_s

    def resume_writing(self) -> None:
        self.writable = True
        if self._lingering:
            return
        if self._reply is None:
            self.deadline_s = self._loop.time() + self._server.limits.keep_alive_s
            self._pump()
        else:
            self.deadline_s = NEVER_S
            if self._reply.source is not None:
                self._reply.source.resume_reading()

    def expire(self) -> None:
        """The deadline of the present phase has passed."""
        if self._transport is None:
            return
        if not self.writable and self._transport.get_write_buffer_size() < self._unsent_bytes:
            self._watch_unsent()
        elif self._lingering or not self.writable or self._reply is not None:
            self.abort()
        elif self._begun:
            self._refuse(RequestTimeout(problem="it did not arrive in time"))
        else:
            self._close()

    # --- httptools' callbacks ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begun = True
        self._waiting_bytes = 0
        self._request = wire.Request(self._peer)
        self._target = b""
        self._body = []
        self._body_length = 0
        self._trailer_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > wire.TARGET_BYTES_MAX:
            raise TargetTooLong(problem=f"its target is over {wire.TARGET_BYTES_MAX} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_done:
            headers = self._request.headers
            name = name.lower()
            if name in headers:
                self._request.add_header(name, value)
            else:  # as add_header does, without the call: 400 instructions less each
                headers[name] = value.strip(b" \t")
            return
        # A trailer, which is of no use.
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > wire.HEAD_BYTES_MAX:
            raise HeadTooLarge(problem=f"its trailers are over {wire.HEAD_BYTES_MAX} bytes")

    def on_headers_complete(self) -> None:
        request = self._request
        parser = self._parser
        request.method = parser.get_method()
        self._head_done = True
        if self._head_is_split and request.head_bytes(self._target) > wire.HEAD_BYTES_MAX:
            raise HeadTooLarge(problem=f"its head is over {wire.HEAD_BYTES_MAX} bytes")
        limit = self._server.limits.body_bytes_max
        length = wire.check_head(request, self._target, parser.get_http_version(), limit)
        self._expected_bytes = length or 0
        if length != 0:
            self.deadline_s = self._loop.time() + self._server.limits.body_s
            if b"expect" in request.headers and not self._ready and not request.http10:
                self.write(wire.CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_length += len(body)
        if self._body_length > self._server.limits.body_bytes_max:
            raise BodyTooLarge(limit=self._server.limits.body_bytes_max)
        self._body.append(body)
        self._waiting_bytes = 0

    def on_message_complete(self) -> None:
        request = self._request
        body = self._body
        request.body = body[0] if len(body) == 1 else b"".join(body)
        request.keep_alive = self._parser.should_keep_alive()
        request.received_s = self._loop.time()
        self._ready.append(request)
        self._begun = False
        self._head_done = False
        self._waiting_bytes = 0

    # --- the order of things ----------------------------------------------------------------------

    def _pump(self) -> None:
        """Answer what is parsed, parse what is there, until a reply is awaited or bytes are.

        A loop, since a chain of calls through thousands of pipelined requests would be a recursion.
        """
        if self._pumping:
            return
        self._pumping = True
        while self._reply is None and self.writable and self._transport is not None:
            if self._ready:
                self._answer(self._ready.popleft())
            elif self._broken is not None:
                self._refuse(self._broken)
                break
            elif self._unparsed:
                self._parse()
            else:
                break
        self._pumping = False
        if not self._reading and len(self._unparsed) <= _AHEAD_BYTES_MAX:
            self._set_reading(True)

    def _answer(self, request: wire.Request) -> None:
        reply = self._reply = Reply(self, request)
        self.deadline_s = NEVER_S
        self._server.app(request, reply)

    def replied(self, reply: Reply) -> None:
        """For the reply: it is complete."""
        self._reply = None
        if not reply.keep_alive or self._server.draining:
            self._close()
            return
        if self.writable:
            self.deadline_s = self._loop.time() + self._server.limits.keep_alive_s
        if self._ready or self._unparsed or self._broken is not None or not self._reading:
            self._pump()

    def _parse(self) -> None:
        """Feed the parser one slice: to the end of a body of known length, else a bound."""
        data = self._unparsed
        size = _SLICE_BYTES
        if self._head_done:
            size = max(size, self._expected_bytes - self._body_length)
        if len(data) <= size:
            self._unparsed = b""
        else:
            data, self._unparsed = data[:size], data[size:]
        known_length = self._body_length
        self._head_is_split = self._begun
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._broken = _translated(error)
            self._unparsed = b""
        else:
            has_grown = self._head_done and self._body_length > known_length
            if not self._ready and not has_grown:
                self._wait(len(data))

    def _decline_upgrade(self, rest: bytes) -> None:
        """Stay with HTTP/1.1 (RFC 9110 section 7.8), and close after the answer.

        The parser takes the head for the end of the message, as if there were no body (Java's
        HttpClient offers h2c with each POST): read it once more, without the offer.
        """
        request = self._ready.pop()
        self._parser = httptools.HttpRequestParser(self)
        self._unparsed = request.head_without_upgrade(self._target) + rest + self._unparsed

    def _wait(self, fed_bytes: int) -> None:
        """A head or the framing of a body is incomplete: bound its time and its size.

        The parser reports a header, trailer or chunk extension when it is whole, if at all; an
        endless one shows in the bytes fed.
        """
        if self._begun and not self._waiting_bytes and not self._head_done:
            self.deadline_s = self._loop.time() + self._server.limits.head_s
        self._waiting_bytes += fed_bytes
        if self._waiting_bytes >= 2 * wire.HEAD_BYTES_MAX:
            self._broken = HeadTooLarge(problem=f"its head is over {wire.HEAD_BYTES_MAX} bytes")

    def _refuse(self, error: FreeApiError) -> None:
        """Answer what can't be parsed, then close without a reset.

        The caller may still be sending: a plain close would answer those bytes with a reset, which
        can destroy our answer before it is read.
        """
        transport = self._transport
        if transport is None or self._lingering:
            return
        reply = Reply(self, wire.Request(self._peer))
        headers = b"content-type: application/json\r\n"
        if error.retry_after_s is not None:
            headers += b"retry-after: %d\r\n" % error.retry_after_s
        head = self.head(reply, error.status, headers)
        body = error.body()
        self.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self._server.refused(error)
        self._lingering = True
        self._ready.clear()
        self.deadline_s = self._loop.time() + _LINGER_S
        self._set_reading(True)
        transport.write_eof()

    def _close(self) -> None:
        """Close once what is written has left."""
        if self._transport is not None:
            self.deadline_s = self._loop.time() + self._server.limits.stalled_s
            self._ready.clear()
            self._unparsed = b""
            self._lingering = True
            self._transport.close()

    def close_if_idle(self) -> None:
        """For draining: nothing is being answered or received."""
        is_receiving = self._begun
        if self._reply is None and not is_receiving and not self._lingering:
            self._close()

    # --- bytes out --------------------------------------------------------------------------------

    def head(self, reply: Reply, status: int, headers: bytes) -> bytes:
        """Status line and the headers of every answer, without the framing's."""
        server = self._server
        if not reply.keep_alive or server.draining:
            reply.keep_alive = False
            headers += b"connection: close\r\n"
        elif reply.http10:
            headers += b"connection: keep-alive\r\n"
        return b"%b%bx-request-id: req_%016x\r\n%b" % (
            wire.STATUS_LINES[status],
            server.common_headers,
            server.random_bits(64),
            headers,
        )

    def write(self, data: bytes) -> None:
        """Send now; the transport keeps what the socket doesn't take."""
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once, without what is still unsent."""
        if self._transport is not None:
            self._transport.abort()

    def _set_reading(self, reading: bool) -> None:
        if reading is not self._reading and self._transport is not None:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()


def _translated(error: httptools.HttpParserError) -> FreeApiError:
    """llhttp's complaint, or the error that one of our callbacks raised inside it.

    Raises what else a callback raised: a mistake of ours, not the caller's. The loop closes then.
    """
    cause = error.__cause__ or error.__context__
    if isinstance(cause, FreeApiError):
        return cause
    if cause is not None:
        raise cause
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return NotImplementedHttp(problem="its method is not one of HTTP's")
    if "HTTP version" in str(error):
        return HttpVersionNotSupported(problem="only HTTP/1.1 and HTTP/1.0 are spoken here")
    return BadHttp(problem="it is not valid HTTP/1.1")
