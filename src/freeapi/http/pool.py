"""The kept-alive connections to one origin.

Synchronous but for ``connect``: ``take`` hands out an idle connection, and a connection comes back
by itself when its answer was complete and both sides want to keep it.

A pool outlives a reload of the configuration that leaves its ``origin`` and ``timeouts`` equal.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import NamedTuple

from freeapi.errors import ConnectTimeout, UpstreamUnreachable
from freeapi.http.deadlines import Deadlines
from freeapi.http.tunnel import ProxyAddress as ProxyAddress  # a part of Origin
from freeapi.http.tunnel import open_tunnel
from freeapi.http.upstream import UpstreamConnection

#: Idle connections kept for an origin; beyond it the oldest is closed.
IDLE_MAX = 256


class Origin(NamedTuple):
    """Where an upstream listens: a host and port, if need be behind a proxy, or a Unix socket."""

    host: str
    port: int
    tls: bool = False
    socket_path: str | None = None
    proxy: ProxyAddress | None = None


class Timeouts(NamedTuple):
    """``connect_s``: DNS, TCP, proxy and TLS together. ``idle_s``: between reads of an answer."""

    connect_s: float
    first_byte_s: float
    idle_s: float


class UpstreamPool:
    """Connections to one origin. ``take`` and ``put`` are O(1)."""

    def __init__(self, origin: Origin, timeouts: Timeouts, deadlines: Deadlines) -> None:
        self.origin = origin
        self.timeouts = timeouts
        self.loop = asyncio.get_running_loop()
        self._deadlines = deadlines
        #: Used as a stack: the most recently used is the least likely to be stale.
        self._idle: dict[UpstreamConnection, None] = {}
        self._open: set[UpstreamConnection] = set()
        self._tls = _tls_context() if origin.tls else None
        self._is_retired = False

    @property
    def connections(self) -> int:
        """How many are open, idle ones too."""
        return len(self._open)

    def take(self) -> UpstreamConnection | None:
        """An idle connection, or None: then ``connect``."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_open and connection.deadline_s > self.loop.time():
                return connection
            connection.close()
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection.

        Raises UpstreamUnreachable or ConnectTimeout; nothing was sent, so another try is safe.
        """
        connection = UpstreamConnection(self)
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                await self._open_transport(connection)
        except TimeoutError:
            raise ConnectTimeout from None
        except (OSError, UnicodeError) as error:  # ssl.SSLError and gaierror are OSErrors
            raise UpstreamUnreachable from error
        return connection

    async def _open_transport(self, connection: UpstreamConnection) -> None:
        origin = self.origin
        try:
            if origin.socket_path is not None:
                await self.loop.create_unix_connection(lambda: connection, origin.socket_path)
            elif origin.proxy is not None:
                await self._open_through(origin.proxy, connection)
            else:
                await self.loop.create_connection(
                    lambda: connection,
                    origin.host,
                    origin.port,
                    ssl=self._tls,
                    server_hostname=origin.host if origin.tls else None,
                )
        except BaseException:
            # Cancelled just as it was made, the transport would be nobody's.
            connection.close()
            raise

    async def _open_through(self, proxy: ProxyAddress, connection: UpstreamConnection) -> None:
        """The name is the proxy's to resolve; the certificate must be the origin's all the same."""
        origin = self.origin
        tunnel = await open_tunnel(proxy, origin.host, origin.port)
        try:
            await self.loop.create_connection(
                lambda: connection,
                sock=tunnel,
                ssl=self._tls,
                server_hostname=origin.host if origin.tls else None,
            )
        except BaseException:
            tunnel.close()  # if a transport has it already, that one closes it, and this is nothing
            raise

    def put(self, connection: UpstreamConnection) -> None:
        """For a connection: idle again."""
        self._idle[connection] = None
        if self._is_retired or len(self._idle) > IDLE_MAX:
            next(iter(self._idle)).close()

    def opened(self, connection: UpstreamConnection) -> None:
        """For a connection: its socket is open."""
        self._open.add(connection)
        self._deadlines.add(connection)

    def closed(self, connection: UpstreamConnection) -> None:
        """For a connection: forget it; told twice is fine."""
        self._idle.pop(connection, None)
        self._open.discard(connection)
        self._deadlines.discard(connection)

    def retire(self) -> None:
        """Keep no connection idle any more: each is closed when its exchange is over."""
        self._is_retired = True
        for connection in tuple(self._idle):
            connection.close()

    def close(self) -> None:
        """Close every connection, busy ones too."""
        for connection in tuple(self._open):
            connection.close()

    def __repr__(self) -> str:
        return f"<UpstreamPool {len(self._open)} open, {len(self._idle)} idle>"


def _tls_context() -> ssl.SSLContext:
    """Certificates and names are checked; HTTP/1.1 is all that we speak (RFC 7301)."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
