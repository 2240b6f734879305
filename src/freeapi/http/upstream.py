"""One connection to an upstream.

It carries one exchange at a time: the request leaves in one write, or its body piece by piece as
chunks (``begin``), the answer comes back through callbacks to a ``Sink``, and an ``Outcome`` tells
when it is complete or what ended it. Nothing is
resent here: what failed is raised, with ``answered_s`` and ``reused`` saying what is known of its
fate, and the proxy decides.

Invariants: a connection is either idle in the pool or has exactly one exchange; bytes outside an
exchange close it (a late answer must never be read as the next one's). A body that wasn't finished
never gets its last chunk, and its connection is closed.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools

from freeapi.errors import (
    ClientGone,
    FreeApiError,
    UpstreamCut,
    UpstreamGarbage,
    UpstreamTimeout,
)
from freeapi.http import heads, wire
from freeapi.http.deadlines import NEVER_S
from freeapi.http.outcome import Outcome

if TYPE_CHECKING:
    from freeapi.http.pool import UpstreamPool

#: More than any API sends (OpenAI: about 30 headers, 2 KiB); bounds an endless head.
HEAD_BYTES_MAX: Final = 65_536
#: Without a word from the upstream. Below the 75 s of nginx, the 60 s of AWS's balancers are met by
#: the one resend that a stale connection gets.
IDLE_S: Final = 55.0
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"timeout=(\d{1,6})")


class Sink(Protocol):
    """Who takes an answer. What these raise (a FreeApiError) ends the exchange."""

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """The final status, and of its headers those of ``heads.ANSWER_HEADERS``."""

    def on_data(self, data: bytes) -> None:
        """All that a read brought of the body, but for the last one; never empty."""

    def on_end(self, data: bytes) -> None:
        """The body is complete with this, which the last read brought of it; empty: nothing."""


class UpstreamConnection(asyncio.Protocol):
    """One socket to the upstream."""

    __deletable__ = ("_parser",)  # for mypyc
    __slots__ = (
        "_body",
        "_closing",
        "_complete",
        "_done",
        "_drained",
        "_final_s",
        "_head_bytes",
        "_headers",
        "_idle_limit_s",
        "_is_sending",
        "_lacking_bytes",
        "_loop",
        "_parser",
        "_paused",
        "_pool",
        "_sink",
        "_status",
        "_transport",
        "_unsent_bytes",
        "_until_close",
        "_writable",
        "answered_s",
        "deadline_s",
        "reused",
    )

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._done: Outcome | None = None
        self._idle_limit_s = IDLE_S
        self._paused = False
        self._closing = False
        #: A body was begun and isn't finished.
        self._is_sending = False
        self._writable = True
        #: Who sends waits for the socket to take more.
        self._drained: asyncio.Future[None] | None = None
        #: When it was last looked at, of an upstream that doesn't keep up.
        self._unsent_bytes = 0
        #: When the whole request must be over, whatever comes.
        self._final_s = NEVER_S
        #: The earliest moment at which the present phase takes too long.
        self.deadline_s = NEVER_S
        #: It served an exchange before, so the upstream may have closed it unseen.
        self.reused = False
        #: Loop time of the answer's first byte; None while there is none.
        self.answered_s: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._until_close = False
        self._complete = False
        self._body: list[bytes] = []
        #: Of a body whose head needed no parser.
        self._lacking_bytes = 0

    # --- for the proxy ----------------------------------------------------------------------------

    def exchange(self, head: bytes, body: bytes, sink: Sink, final_s: float) -> Outcome:
        """Send a request, and let ``sink`` have the answer; the outcome is known at its end.

        ``final_s`` (loop time) bounds the whole. The outcome raises UpstreamCut, UpstreamGarbage,
        UpstreamTimeout, ClientGone (after ``abandon``) or what the sink raised.
        """
        transport = self._transport
        assert transport is not None, "a connection is handed out open"
        assert self._sink is None, "one exchange at a time"
        self._sink = sink
        done = self._done = Outcome()
        self.answered_s = None
        self._final_s = final_s
        self.deadline_s = min(self._loop.time() + self._pool.timeouts.first_byte_s, final_s)
        if len(body) < wire.COPIED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        return done

    def begin(self, head: bytes, sink: Sink, final_s: float) -> Outcome:
        """The same for a body in pieces: the head (``transfer-encoding: chunked``) is sent.

        Then ``send`` and at last ``finish``. The time to the first byte counts from there; before,
        an upstream that takes nothing for ``idle_s`` ends the exchange by UpstreamTimeout.
        """
        done = self.exchange(head, b"", sink, final_s)
        self._is_sending = True
        self.deadline_s = final_s
        return done

    async def send(self, data: bytes) -> bool:
        """A piece of the body, not empty; waits until there is room for the next one.

        False once no more is wanted: the exchange has ended, well or not (the outcome tells), or is
        ending with the upstream's refusal. Then there is nothing more to send nor to finish.
        """
        assert data, "an empty chunk would be the last one"
        transport = self._transport
        if transport is None or not self._is_wanted:
            return False
        transport.write(wire.chunk(data))
        if not self._writable:
            self._drained = self._loop.create_future()
            try:
                await self._drained
            finally:
                self._drained = None
        return self._is_wanted

    def finish(self) -> None:
        """The body is complete. Does nothing if no more of it was wanted."""
        if self._transport is not None and self._is_wanted:
            self._is_sending = False
            first_byte_s = self._loop.time() + self._pool.timeouts.first_byte_s
            self.deadline_s = min(first_byte_s, self._final_s)
            self._transport.write(wire.LAST_CHUNK)

    @property
    def _is_wanted(self) -> bool:
        return self._is_sending and self._sink is not None and self._status < 300

    def abandon(self, sink: Sink) -> None:
        """The caller has gone: close now, so that the upstream stops working (and billing).

        If the sink's exchange is over, this is another's connection by now, and nothing happens.
        """
        if self._sink is sink:
            self._fail(ClientGone())

    def pause_reading(self) -> None:
        """Flow control: the caller doesn't keep up, which isn't the upstream's delay.

        After the exchange it does nothing: the next one's caller is another.
        """
        if self._transport is not None and self._sink is not None and not self._paused:
            self._paused = True
            self.deadline_s = self._final_s
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Flow control: go on."""
        if self._transport is not None and self._paused:
            self._paused = False
            self.deadline_s = min(self._loop.time() + self._pool.timeouts.idle_s, self._final_s)
            self._transport.resume_reading()

    @property
    def is_open(self) -> bool:
        """Whether an exchange may begin."""
        return self._transport is not None and not self._transport.is_closing()

    # --- asyncio's callbacks ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._sink is None:  # said without being asked: never read it as the next answer
            self.close()
            return
        now_s = self._loop.time()
        is_first = self.answered_s is None
        if is_first:
            self.answered_s = now_s
        if not self._paused:
            self.deadline_s = min(now_s + self._pool.timeouts.idle_s, self._final_s)
        failure: FreeApiError | None = None
        try:
            if self._lacking_bytes:
                self._take_body(data)
            elif not is_first or not self._take_plain(self._sink, data):
                self._parser.feed_data(data)
                self._check_head_bytes(len(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__cause__ or error.__context__
            if cause is not None and not isinstance(cause, FreeApiError):
                raise cause from None  # a mistake of ours: the loop reports it and closes
            failure = cause or UpstreamGarbage()
        except FreeApiError as error:
            failure = error
        if self._complete and failure is None:
            self._finish()
            return
        if self._body:  # what came before a fault is sound, and may have come in a read of its own
            self._pass_on()
        if failure is not None:
            self._fail(failure)

    def _take_plain(self, sink: Sink, data: bytes) -> bool:
        """Take the first bytes of an answer without the parser, if they are plain enough."""
        head = heads.read_plain_head(data)
        if head is None or len(data) > head.size + head.length:
            return False
        self._status = 200
        self._headers = head.headers
        sink.on_head(200, head.headers)
        self._lacking_bytes = head.length
        self._take_body(data[head.size :])
        return True

    def _take_body(self, data: bytes) -> None:
        """More of a body of known length. Raises UpstreamGarbage for what goes on behind it."""
        lacking = self._lacking_bytes = self._lacking_bytes - len(data)
        if data:
            self._body.append(data)
        if lacking < 0:
            self._body[-1] = data[:lacking]
            raise UpstreamGarbage
        if not lacking:
            self._complete = True
            self._closing = self._is_sending

    def _pass_on(self) -> None:
        """Give the sink what one read brought of the body."""
        if self._sink is None:
            return
        try:
            self._sink.on_data(self._taken())
        except FreeApiError as error:
            self._fail(error)

    def _taken(self) -> bytes:
        """What was read of the body and isn't passed on."""
        body, self._body = self._body, []
        return b"".join(body)  # of one piece no copy is made

    def eof_received(self) -> None:
        """A body without a length ends here (RFC 9112 section 6.3, case 8); any other is cut."""
        if self._sink is not None and self._until_close:
            self._closing = True
            self._finish()

    def pause_writing(self) -> None:
        self._writable = False
        if self._is_sending:
            self._watch_unsent()

    def _watch_unsent(self) -> None:
        """Look again later whether the upstream has taken something meanwhile."""
        assert self._transport is not None, "only an open connection has something unsent"
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self.deadline_s = min(self._loop.time() + self._pool.timeouts.idle_s, self._final_s)

    def resume_writing(self) -> None:
        self._writable = True
        if self._is_sending:
            self.deadline_s = self._final_s
        self._wake_sender()

    def _wake_sender(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._wake_sender()
        self._pool.closed(self)
        self._fail(UpstreamCut())
        del self._parser  # its callbacks are ours: a cycle, which only the collector would free

    def expire(self) -> None:
        """The deadline has passed: an idle connection is closed, an exchange fails.

        Not while a body is under way that the upstream takes, or would take: an answer that begins
        early (or an interim one) sets a deadline, but the delay is the caller's.
        """
        transport = self._transport
        if self._sink is None or transport is None:
            self.close()
        elif not self._is_wanted or self._loop.time() >= self._final_s:
            self._fail(UpstreamTimeout())
        elif self._writable:
            self.deadline_s = self._final_s
        elif transport.get_write_buffer_size() < self._unsent_bytes:
            self._watch_unsent()
        else:
            self._fail(UpstreamTimeout())

    # --- httptools' callbacks ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            raise UpstreamGarbage  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        known = heads.answer_header(name)
        if known and not self._status:  # else a trailer, which nobody asked for
            self._headers[known] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            if status == 101:
                raise UpstreamGarbage
            return
        self._status = status
        headers = self._headers
        self._until_close = (
            b"content-length" not in headers
            and b"transfer-encoding" not in headers
            and status not in (204, 304)
        )
        assert self._sink is not None, "an answer belongs to an exchange"
        self._sink.on_head(status, headers)

    def on_body(self, body: bytes) -> None:
        if not self._status:  # an interim answer has none (RFC 9112 section 6.3)
            raise UpstreamGarbage
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._status:  # an interim answer (RFC 9110 section 15.2)
            self._headers = {}
            return
        self._complete = True
        self._closing = self._is_sending or not self._parser.should_keep_alive()

    def _check_head_bytes(self, fed_bytes: int) -> None:
        """Bound what brings no body: an endless head, trailer or chunk extension."""
        self._head_bytes = 0 if self._body else self._head_bytes + fed_bytes
        if self._head_bytes > HEAD_BYTES_MAX:
            raise UpstreamGarbage

    # --- ends -------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The answer is complete: back into the pool first, as the sink may start something new."""
        sink, done = self._sink, self._done
        assert sink is not None
        assert done is not None
        self._sink = self._done = None
        keep_alive = self._headers.get(b"keep-alive")
        body = self._taken()
        self._reset()
        self._release(keep_alive)
        try:
            sink.on_end(body)
        except FreeApiError as error:
            done.resolve(error)
        except BaseException:  # a bug of the sink's: still, who waits must wake
            done.resolve(FreeApiError())
            raise
        else:
            done.resolve(None)

    def _release(self, keep_alive: bytes | None) -> None:
        transport = self._transport
        if transport is None or self._closing or transport.get_write_buffer_size():
            self.close()
            return
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if keep_alive is not None and (found := _KEEP_ALIVE_TIMEOUT.search(keep_alive)):
            self._idle_limit_s = min(IDLE_S, int(found[1]) - 1.0)
        self.reused = True
        self.deadline_s = self._loop.time() + self._idle_limit_s
        self._pool.put(self)

    def _fail(self, error: FreeApiError) -> None:
        """End the exchange, if there is one, by ``error``; the connection is of no more use."""
        done = self._done
        self._sink = self._done = None
        if self._transport is not None:
            self._transport.abort()
        if done is not None:
            done.resolve(error)

    def close(self) -> None:
        """Close without an exchange."""
        self._pool.closed(self)
        if self._transport is not None:
            self._transport.abort()
