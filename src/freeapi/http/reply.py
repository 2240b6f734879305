"""The answer to one request, as the application writes it.

What it is not: it holds no bytes. What is written goes to the connection in the same call, framed
by what the request allows: a length, chunks (RFC 9112 section 7.1), or the connection's end for
HTTP/1.0. Flow control runs the other way: the connection pauses and resumes ``source``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from freeapi.errors import FreeApiError
from freeapi.http import wire

if TYPE_CHECKING:
    from freeapi.http.connection import Connection


class Source(Protocol):
    """Where a reply's bytes come from, as far as flow control goes."""

    def pause_reading(self) -> None:
        """The caller reads too slowly: fetch nothing more for now."""

    def resume_reading(self) -> None:
        """The caller has caught up."""


class Reply:
    """The answer to one request, written as it comes to be known.

    Either ``send`` once, or ``start``, any number of ``write``, and ``end`` or ``cut``.
    After the caller has gone all of them do nothing.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_connection",
        "body_bytes",
        "http10",
        "keep_alive",
        "last_words",
        "on_gone",
        "source",
        "status",
    )

    def __init__(self, connection: Connection, request: wire.Request) -> None:
        self._connection: Connection | None = connection
        self._bodiless = request.method == b"HEAD"
        self.http10 = request.http10
        self._chunked = not request.http10
        self.keep_alive = request.keep_alive
        #: Called once, synchronously, if the caller goes before the end.
        self.on_gone: Callable[[], object] | None = None
        self.source: Source | None = None
        #: What may be added to a body that has begun, where we have to end before it does.
        self.last_words = b""
        #: The status that was sent, 0 before; and how much of a body.
        self.status = 0
        self.body_bytes = 0

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits for it: the caller has left, or it is complete."""
        return self._connection is None

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer in one write. ``headers`` are complete lines, each ending with CRLF."""
        connection = self._connection
        if connection is None:
            return
        self.status = status
        head = connection.head(self, status, headers)
        if status in (204, 304):  # have no body (RFC 9110 section 8.6)
            connection.write(head + b"\r\n")
        else:
            shown = b"" if self._bodiless else body
            self.body_bytes = len(shown)
            length = str(len(body)).encode()
            if len(shown) < wire.COPIED_BYTES_MAX:
                # A format of bytes alone is compiled to one allocation.
                connection.write(b"%bcontent-length: %b\r\n\r\n%b" % (head, length, shown))
            else:
                connection.write(b"%bcontent-length: %b\r\n\r\n" % (head, length))
                connection.write(shown)
        self._finish(connection)

    def start(self, status: int, headers: bytes, length: int | None) -> None:
        """The head of an answer whose body follows. ``length`` None: until ``end``."""
        connection = self._connection
        if connection is None:
            return
        self.status = status
        if length is not None:
            self._chunked = False
            framing = b"content-length: %d\r\n\r\n" % length
        elif self._chunked:
            framing = b"transfer-encoding: chunked\r\n\r\n"
        else:  # HTTP/1.0: the end of the connection is the end of the body
            self.keep_alive = False
            framing = b"\r\n"
        connection.write_soon(connection.head(self, status, headers) + framing)

    def write(self, data: bytes) -> None:
        """A piece of the body (not empty), on its way at once."""
        connection = self._connection
        if connection is not None:
            self.body_bytes += len(data)
            connection.write(wire.chunk(data) if self._chunked else data)

    def end(self, data: bytes = b"") -> None:
        """The body is complete with this."""
        connection = self._connection
        if connection is None:
            return
        self.body_bytes += len(data)
        if self._chunked:
            data = wire.chunk(data) + wire.LAST_CHUNK if data else wire.LAST_CHUNK
        if data:
            connection.write(data)
        self._finish(connection)

    def cut(self) -> None:
        """The body can't be completed: close so that the caller can't take it for whole."""
        connection = self._connection
        if connection is not None:
            self._forget()
            connection.abort()

    def stop(self, error: FreeApiError) -> None:
        """For the connection, which has to end: say why as far as the answer allows, and close."""
        on_gone = self.on_gone
        self.keep_alive = False
        if not self.status:
            self.send(error.status, b"content-type: application/json\r\n", error.body())
        elif self.last_words:
            self.write(self.last_words)
            self.end()
        else:
            self.cut()
        if on_gone is not None:
            on_gone()

    def gone(self) -> None:
        """For the connection: the caller has left."""
        on_gone = self.on_gone
        self._forget()
        if on_gone is not None:
            on_gone()

    def _finish(self, connection: Connection) -> None:
        self._forget()
        connection.replied(self)

    def _forget(self) -> None:
        """Drop the references that would make a cycle with the connection and its source."""
        self._connection = self.on_gone = self.source = None
