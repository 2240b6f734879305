"""The body of one request, read piece by piece while it arrives.

The connection puts in what its parser finds, the application takes out; a body of any size is never
here as a whole. Where the application doesn't keep up, the caller's socket isn't read.

What it is not: it has no clock (the connection's deadline ends the wait for a caller that stalls)
and knows nothing of forms, which are ``freeapi.http.multipart``'s.

Invariants:
- At most UNREAD_BYTES_MAX and one slice of the parser's are kept.
- ``read`` gives the end only after the whole body; a body that can't be completed raises instead.
- Once it is complete or has failed, it no longer refers to its connection.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from freeapi.errors import FreeApiError

#: With so much unread nothing more is parsed: enough to keep a reader busy while the next is read.
UNREAD_BYTES_MAX = 65_536


class Receiver(Protocol):
    """The connection, as far as an upload needs it."""

    def await_body(self) -> None:
        """The reader waits from now on: bound that, and ask the caller for the body."""

    def receive(self) -> None:
        """There is room again."""


class Upload:
    """A body on its way. O(bytes); one task reads it, and no more once it has begun to answer."""

    __slots__ = ("_error", "_is_complete", "_receiver", "_unread", "_waiter")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver: Receiver | None = receiver
        self._unread = bytearray()
        self._is_complete = False
        self._error: FreeApiError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether more may be put in."""
        return self._error is None and len(self._unread) < UNREAD_BYTES_MAX

    async def read(self) -> bytes:
        """All that has come since; waits for some. b"" at the end of the body.

        Raises BodyTooLarge, RequestTimeout, BadHttp (all to be answered, after which the connection
        closes) or ClientGone.
        """
        assert self._waiter is None, "one task reads it"
        if not self._unread and not self._is_complete and self._error is None:
            await self._news()
        if self._error is not None:
            raise self._error
        data = bytes(self._unread)
        self._unread.clear()
        if self._receiver is not None:
            self._receiver.receive()
        return data

    async def _news(self) -> None:
        assert self._receiver is not None, "it is there until the end"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            self._receiver.await_body()
            await self._waiter
        finally:
            self._waiter = None

    # --- for the connection -----------------------------------------------------------------------

    def feed(self, data: bytes) -> bool:
        """The next piece. Returns whether somebody was waiting for it."""
        self._unread += data
        return self._wake()

    def finish(self) -> bool:
        """The body is complete. Returns whether somebody was waiting."""
        self._is_complete = True
        self._receiver = None
        return self._wake()

    def fail(self, error: FreeApiError) -> None:
        """The body can't be completed; the first reason counts."""
        if self._error is None:
            self._error = error
            self._receiver = None
            self._unread.clear()
            self._wake()

    def _wake(self) -> bool:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return False
        waiter.set_result(None)
        return True
