"""One caller's socket: bytes to requests, replies to bytes.

Driven by callbacks of the event loop and of the parser. A request is parsed only when the one
before is answered, so answers leave in order and a pipelining caller holds a bounded number of
bytes here. An upload reaches the application at the end of its head; its body is parsed while the
application reads it, and as far ahead as an ``Upload`` has room. A request whose head is the same
as the one before over this connection (``heads.KnownHead``) needs no parser: what that would find
is known, and the body is as long as the head says.

Invariants:
- The parser is between messages while a request without it is taken in, and knows nothing of it.
- ``_reply`` is the one unanswered request, or None; while it is set, nothing is parsed but the body
  of an upload that the application has.
- An upload that is answered before it was complete is the connection's last request.
- After an error in framing nothing more is parsed; the connection closes (RFC 9112 section 9.6).
- When the caller goes, ``reply.on_gone`` runs in the same callback, before anything else.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import httptools

from freeapi.errors import (
    BadHttp,
    BodyTooLarge,
    CapacityExceeded,
    ClientGone,
    FreeApiError,
    HeadTooLarge,
    HttpVersionNotSupported,
    NotImplementedHttp,
    RequestTimeout,
    TargetTooLong,
)
from freeapi.http import heads, wire
from freeapi.http.deadlines import NEVER_S
from freeapi.http.reply import Reply
from freeapi.http.upload import Upload

if TYPE_CHECKING:
    from freeapi.http.server import Server

#: Fed to the parser at once while a head is being read. Bounds both what a head can grow to and
#: how many pipelined requests are parsed ahead (about 600 of the shortest).
_SLICE_BYTES: Final = wire.HEAD_BYTES_MAX
#: The same for the body of an upload: what one read of its reader's may be longer by.
_UPLOAD_SLICE_BYTES: Final = 65_536
#: Bytes of further requests kept while one is being answered; then reading stops.
_AHEAD_BYTES_MAX: Final = 65_536
#: An id has 16 digits: this, and random bits on top.
_ID_FIRST: Final = 1_000_000_000_000_000
_ID_BITS: Final = 52
#: How long a refused caller's bytes are read and thrown away, so that it sees the answer and not a
#: reset (RFC 9112 section 9.6; nginx's lingering_timeout is 5 s too).
_LINGER_S: Final = 5.0


class Connection(asyncio.Protocol):
    """One caller's socket."""

    __deletable__ = ("_parser",)  # for mypyc
    __slots__ = (
        "_begun",
        "_body",
        "_body_bytes_max",
        "_body_length",
        "_broken",
        "_expected_bytes",
        "_has_answered",
        "_head_done",
        "_head_is_split",
        "_held",
        "_known",
        "_lacking_bytes",
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
        "_upload",
        "_upload_end_s",
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
        #: The head of a caller's requests, once it has sent two with the same.
        self._known: heads.KnownHead | None = None
        #: Of the body behind it, while that comes.
        self._lacking_bytes = 0
        self._body: list[bytes] = []
        self._body_length = 0
        self._body_bytes_max = 0
        #: Where the body in hand goes, if piece by piece; it is still to be completed.
        self._upload: Upload | None = None
        #: When it must be complete; 0.0 before the application first waits for it.
        self._upload_end_s = 0.0
        self._pumping = False
        self._reading = True
        self._lingering = False
        #: To be sent with what follows.
        self._held = b""
        #: It isn't the first request any more.
        self._has_answered = False
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
        elif self._upload is not None:
            self.receive()
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
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.fail(ClientGone())

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
        elif self.writable and self._reply is not None and self._upload is not None:
            self.deadline_s = NEVER_S
            self._upload.fail(RequestTimeout(problem="its body did not arrive in time"))
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
            name = wire.LOWER_CASE.get(name) or name.lower()
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
        server = self._server
        request.method = parser.get_method()
        self._head_done = True
        if self._head_is_split and request.head_bytes(self._target) > wire.HEAD_BYTES_MAX:
            raise HeadTooLarge(problem=f"its head is over {wire.HEAD_BYTES_MAX} bytes")
        length = wire.check_head(request, self._target, parser.get_http_version())
        self._expected_bytes = length or 0
        limits = server.limits
        is_upload = server.is_upload is not None and server.is_upload(request)
        limit = limits.upload_bytes_max if is_upload else limits.body_bytes_max
        if self._expected_bytes > limit:
            raise BodyTooLarge(limit=limit)
        self._body_bytes_max = limit
        if is_upload:
            self._begin_upload(request)
        elif length != 0:
            self.deadline_s = self._loop.time() + limits.body_s
            if b"expect" in request.headers and not self._ready and not request.http10:
                self.write(wire.CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body_length += len(body)
        if self._body_length > self._body_bytes_max:
            raise BodyTooLarge(limit=self._body_bytes_max)
        if self._upload is None:
            self._body.append(body)
        elif self._upload.feed(body):
            self.deadline_s = NEVER_S
        self._waiting_bytes = 0

    def on_message_complete(self) -> None:
        self._begun = False
        self._head_done = False
        self._waiting_bytes = 0
        request = self._request
        if self._upload is not None:
            self._end_upload(request, self._upload)
            return
        self._complete(request, keep_alive=self._parser.should_keep_alive())
        self._ready.append(request)

    def _complete(self, request: wire.Request, *, keep_alive: bool) -> None:
        """All of its body is there."""
        request.body = b"".join(self._body)  # of one piece no copy is made
        request.keep_alive = keep_alive
        request.received_s = self._loop.time()

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
                self._take_in()
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
        self._flush()
        self._reply = None
        self._has_answered = True
        if not reply.keep_alive or self._server.draining:
            if self._upload_in_hand is None:
                self._close()
            else:  # its caller is still sending
                self._linger()
            return
        if self.writable:
            self.deadline_s = self._loop.time() + self._server.limits.keep_alive_s
        if self._ready or self._unparsed or self._broken is not None or not self._reading:
            self._pump()

    def _take_in(self) -> None:
        """Take in what has come, by the parser where it is needed."""
        if self._lacking_bytes:
            self._take_body()
        elif self._known is None or self._begun or not self._take_known(self._known):
            self._parse()

    def _take_known(self, known: heads.KnownHead) -> bool:
        """Begin a request by its head, if it is the known one and nothing comes behind it."""
        data = self._unparsed
        start, length = known.find(data)
        lacking = start + length - len(data)
        if not start or lacking < 0 or length > self._server.limits.body_bytes_max:
            return False  # of several at once each would be cut out of all the others
        self._unparsed = b""
        self._request = request = known.again(length)
        self._body = [data[start:]]
        if lacking:
            self._begun = True
            self._lacking_bytes = lacking
            self.deadline_s = self._loop.time() + self._server.limits.body_s
        else:
            self._complete(request, keep_alive=True)
            self._answer(request)
        return True

    def _take_body(self) -> None:
        """More of the body behind a known head."""
        data, self._unparsed = self._unparsed, b""
        lacking = self._lacking_bytes
        if len(data) > lacking:
            data, self._unparsed = data[:lacking], data[lacking:]
        self._body.append(data)
        self._lacking_bytes = lacking - len(data)
        if not self._lacking_bytes:
            self._begun = False
            self._complete(self._request, keep_alive=True)
            self._answer(self._request)

    def _parse(self) -> None:
        """Feed the parser one slice: to the end of a body of known length, else a bound."""
        data = self._unparsed
        size = _SLICE_BYTES
        if self._head_done:
            size = max(size, self._expected_bytes - self._body_length)
            if self._upload is not None:
                size = min(size, _UPLOAD_SLICE_BYTES)
        if len(data) <= size:
            self._unparsed = b""
        else:
            data, self._unparsed = data[:size], data[size:]
        known_length = self._body_length if self._begun else 0
        upload = self._upload
        self._head_is_split = self._begun
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline_upgrade(data[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._break(_translated(error))
        else:
            has_grown = self._head_done and self._body_length > known_length
            if not self._ready and not has_grown and upload is self._upload:
                self._wait(len(data))
            elif self._has_answered and not self._head_is_split:
                self._learn(data)

    def _learn(self, data: bytes) -> None:
        """Know the head with which ``data`` begins, if there is but one message in it."""
        request = self._request
        ready = len(self._ready)
        if (ready == 1 and self._ready[0] is request) or (not ready and self._head_done):
            self._known = heads.known_head(data, request) or self._known

    def _break(self, error: FreeApiError) -> None:
        """Nothing more can be parsed; an upload that was under way can't be completed."""
        self._broken = error
        self._unparsed = b""
        if self._upload is not None:
            self._upload.fail(error)

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
            self._break(HeadTooLarge(problem=f"its head is over {wire.HEAD_BYTES_MAX} bytes"))

    def _refuse(self, error: FreeApiError) -> None:
        """Answer what can't be parsed, then close without a reset."""
        if self._transport is None or self._lingering:
            return
        reply = Reply(self, wire.Request(self._peer))
        headers = b"content-type: application/json\r\n"
        if error.retry_after_s is not None:
            wait_s = max(1, math.ceil(error.retry_after_s))
            headers += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (wait_s, wait_s * 1_000)
        head = self.head(reply, error.status, headers)
        body = error.body()
        self.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self._server.refused(error)
        self._linger()

    def _linger(self) -> None:
        """Send no more, and close when the caller has seen the end.

        It may still be sending: a plain close would answer those bytes with a reset, which can
        destroy our answer before it is read.
        """
        if self._transport is None:
            return
        self._lingering = True
        self._ready.clear()
        self._unparsed = b""
        self.deadline_s = self._loop.time() + _LINGER_S
        self._set_reading(True)
        self._transport.write_eof()
        if self._upload is not None:
            self._upload.fail(ClientGone())

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

    # --- uploads ----------------------------------------------------------------------------------

    def _begin_upload(self, request: wire.Request) -> None:
        """At the end of its head: ready for the application."""
        self._upload_end_s = 0.0
        self._upload = request.upload = Upload(self)
        # So that an answer before the body's end says ``connection: close``.
        request.keep_alive = False
        request.received_s = self._loop.time()
        self._ready.append(request)

    def _end_upload(self, request: wire.Request, upload: Upload) -> None:
        """Its body is complete, and the connection may be kept unless its answer has begun."""
        self._upload = None
        if upload.finish():
            self.deadline_s = NEVER_S
        keep_alive = self._parser.should_keep_alive()
        if self._ready and self._ready[-1] is request:
            request.keep_alive = keep_alive
        elif self._reply is not None and not self._reply.status:
            self._reply.keep_alive = keep_alive

    def await_body(self) -> None:
        """For the upload: its reader waits for a piece, from now on."""
        assert self._upload is not None, "only an upload that isn't complete is waited for"
        now_s = self._loop.time()
        if not self._upload_end_s:
            self._upload_end_s = now_s + self._server.limits.upload_s
            request = self._request
            if b"expect" in request.headers and not self._body_length and not request.http10:
                self.write(wire.CONTINUE)
        self.deadline_s = min(now_s + self._server.limits.body_s, self._upload_end_s)
        self.receive()

    def receive(self) -> None:
        """For the upload as well: take in what there is room for; else the caller has to wait."""
        while self._unparsed and (upload := self._upload_in_hand) is not None and upload.has_room:
            self._parse()
        ahead_bytes_max = _AHEAD_BYTES_MAX if self._upload_in_hand is None else 0
        self._set_reading(len(self._unparsed) <= ahead_bytes_max)

    @property
    def _upload_in_hand(self) -> Upload | None:
        """The one that the application has, while it isn't complete."""
        return None if self._ready else self._upload

    # --- bytes out --------------------------------------------------------------------------------

    def head(self, reply: Reply, status: int, headers: bytes) -> bytes:
        """Status line and the headers of every answer, without the framing's."""
        server = self._server
        if not reply.keep_alive or server.draining:
            reply.keep_alive = False
            headers += b"connection: close\r\n"
        elif reply.http10:
            headers += b"connection: keep-alive\r\n"
        # An id of 16 digits; a sum of bytes takes half the time of a format.
        request_id = str(_ID_FIRST + server.random_bits(_ID_BITS)).encode()
        common = server.common_headers + b"x-request-id: req_" + request_id
        return wire.STATUS_LINES[status] + common + b"\r\n" + headers

    def write(self, data: bytes) -> None:
        """Send now; the transport keeps what the socket doesn't take."""
        if self._transport is not None:
            if self._held:
                data, self._held = self._held + data, b""
            self._transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """Send with what is written next, or at the end of this turn of the loop.

        For a head: its body's first bytes often come with it, and each write is a system call.
        """
        self._held = data
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._held:
            self.write(b"")

    def stop(self, error: FreeApiError) -> None:
        """For the end of a drain: tell who still waits, and close once that has left."""
        if self._reply is None:
            self.abort()
        else:
            self._reply.stop(error)

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
