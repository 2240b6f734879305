"""Calls out and answers in, in order, over one connection to Valkey or Redis.

``ValkeyDialer`` makes connections, ``ValkeyPipe`` is one; both are what ``valkey.Store`` asks for.

What this is not: it doesn't connect again, and it knows no script and no key. Connecting itself
(TLS, password, database, Unix sockets, the URL's options) is valkey-py's. Its way of making calls
isn't used: it takes 123 us of processor time a call, 69 us at 64 calls at once; with the protocol
below it is 14 us and 5 us.

Nothing imports this module at its top, as the libraries take 0.1 s: ``valkey`` loads it.

Invariants: answers belong to calls in their order; after ``close`` every call has failed, and
nothing more is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, cast

import libvalkey
from valkey.asyncio.connection import AbstractConnection, ConnectionPool
from valkey.exceptions import ValkeyError

from freeapi.state.valkey import (
    CONNECT_TIMEOUT_S,
    LOOKS,
    Call,
    StoreError,
    StoreRefused,
    unavailable,
    unreachable,
)

#: Answers that say that the server can't serve anyone now, rather than that the call is wrong.
_AWAY: Final = frozenset(("LOADING", "MASTERDOWN", "READONLY", "MISCONF", "OOM", "BUSY"))


class ValkeyDialer:
    """As ``valkey.Dialer``, for one URL."""

    def __init__(self, url: str) -> None:
        """Raises StoreError: the URL isn't one of one server."""
        self._pool = _pool(url)

    async def dial(self, lost: Callable[[str], None]) -> ValkeyPipe:
        """The library connects, by TLS where that is wanted, and logs in. Raises StoreError."""
        connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
        except (ValkeyError, OSError) as error:  # a TimeoutError is an OSError
            await connection.disconnect(nowait=True)
            raise unreachable(error) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return ValkeyPipe(connection, lost)


class ValkeyPipe(asyncio.Protocol):
    """As ``valkey.Pipe``. A call costs 5 us at 64 in flight, without the server's side."""

    def __init__(self, connection: AbstractConnection, lost: Callable[[str], None]) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._reader = libvalkey.Reader()
        self._calls: deque[Call] = deque()
        self._out: list[bytes] = []
        self._looks = 0
        # The library has no name for it: the price of its handshake with our pipeline.
        assert connection._writer is not None, "it isn't connected"
        self._transport = cast(asyncio.Transport, connection._writer.transport)
        self._transport.set_protocol(self)
        self.is_open = True

    def send(self, parts: Iterable[bytes], call: Call) -> None:
        """Send at the end of this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._add(libvalkey.pack_command(tuple(parts)), call)

    def write(self, command: bytes, call: Call) -> None:
        """Send what is packed already at once, after what was to be sent at this turn's end."""
        self._add(command, call)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Hand out the answers that have come whole."""
        self._reader.feed(data)
        while (answer := self._next()) is not False:
            self._answered(self._calls.popleft(), answer)

    def connection_lost(self, error: Exception | None) -> None:
        """The server, or the way to it, is gone."""
        self.close("closed")

    def look(self) -> None:
        """Close the connection if its oldest call waits for too long."""
        self._looks += 1
        if self._calls and self._looks - self._calls[0].born > LOOKS:
            self.close("timeout")

    def close(self, why: str) -> None:
        """End it; calls without an answer fail, and nobody knows what became of them."""
        if not self.is_open:
            return
        self.is_open = False
        self._out.clear()
        self._transport.abort()
        # So that it doesn't think that it is open.
        self._connection._writer = self._connection._reader = None
        calls, self._calls = self._calls, deque()
        self._lost(why)
        self._fail(calls)

    def _fail(self, calls: deque[Call]) -> None:
        try:
            while calls:
                calls.popleft().failed(unavailable())
        finally:
            if calls:  # a bug in what follows one failure must not keep the others waiting
                self._loop.call_soon(self._fail, calls)

    def _add(self, command: bytes, call: Call) -> None:
        self._out.append(command)
        call.born = self._looks
        self._calls.append(call)

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _next(self) -> object:
        """The next whole answer; False: there is none, or none that belongs to a call."""
        try:
            answer: object = self._reader.gets()
        except libvalkey.ProtocolError:
            self.close("garbage")
            return False
        if answer is not False and not self._calls:
            self.close("garbage")
            return False
        return answer

    def _answered(self, call: Call, answer: object) -> None:
        if isinstance(answer, libvalkey.ReplyError):
            self._refused(call, answer)
        else:
            call.answered(answer)

    def _refused(self, call: Call, error: Exception) -> None:
        word = str(error).partition(" ")[0]
        if word == "NOSCRIPT" and call.again is not None:
            script, tail = call.again
            call.again = None
            self.send((b"EVAL", script.source, *tail), call)
            return
        is_away = word in _AWAY
        call.failed(unavailable() if is_away else StoreRefused(str(error)))
        if is_away:
            self.close(word.lower())


def _pool(url: str) -> ConnectionPool:
    """The library's reading of the URL: never connects, only makes connections."""
    scheme = url.partition("://")[0]
    if scheme not in ("valkey", "valkeys", "redis", "rediss", "unix"):
        raise StoreError(
            "FREEAPI_STATE must be memory or a URL with valkey://, valkeys://, redis://, rediss:// "
            "or unix://. Sentinel and Cluster aren't supported: a failover may lose leases that "
            "were granted, and with them the cap"
        )
    try:
        return ConnectionPool.from_url(url, socket_connect_timeout=CONNECT_TIMEOUT_S)
    except (ValueError, TypeError) as error:
        raise StoreError("FREEAPI_STATE isn't a URL that valkey-py can read") from error
