"""The public port: listens, counts connections, drains.

The application is one synchronous call, ``app(request, reply)``; it answers at once, or keeps the
reply and answers later from wherever it likes. A request has its whole body by then, unless
``is_upload`` said of its head that the body is to be read piece by piece (``freeapi.http.upload``).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, NamedTuple

from freeapi.errors import FreeApiError, ShuttingDown
from freeapi.http import wire
from freeapi.http.connection import Connection
from freeapi.http.deadlines import Deadlines
from freeapi.http.reply import Reply

Application = Callable[[wire.Request, Reply], None]

#: At the end of a drain, for those who are cut to be told so. Platforms kill 1 s after what they
#: grant (deploy/cloudrun: 10 s, of which FREEAPI_DRAIN_S takes 9).
LAST_WORDS_S = 0.3


class ServerLimits(NamedTuple):
    """What one caller may take. Seconds and bytes; precedents in DESIGN are nginx and Node."""

    body_bytes_max: int
    connections_max: int
    connections_per_address_max: int | None
    #: Of a body that is read piece by piece.
    upload_bytes_max: int = 26_214_400
    head_s: float = 10.0
    #: For a whole body; and how long a piece of an upload may be waited for.
    body_s: float = 30.0
    #: For a whole upload, from its first read: the default limit of bytes at 350 kbit/s.
    upload_s: float = 600.0
    keep_alive_s: float = 75.0
    #: A caller that takes nothing for so long, while there is something to take, is cut.
    stalled_s: float = 60.0


class Server:
    """All connections of one public port."""

    def __init__(
        self,
        app: Application,
        limits: ServerLimits,
        deadlines: Deadlines,
        *,
        headers: bytes = b"",
        is_upload: Callable[[wire.Request], bool] | None = None,
        refused: Callable[[FreeApiError], None] = lambda error: None,
    ) -> None:
        """``headers`` go into every answer; ``refused`` is told of those sent without ``app``.

        ``is_upload`` is asked once for each request, at the end of its head; None: none ever is.
        """
        self.app = app
        self.limits = limits
        self.is_upload = is_upload
        self.refused = refused
        self.loop = asyncio.get_running_loop()
        #: An id needs no secrecy, but must not tell the time or a count: a random seed.
        seed = random.SystemRandom().getrandbits(128)
        self.random_bits = random.Random(seed).getrandbits  # noqa: S311 - no secrecy, see above
        self.draining = False
        self.deadline_s = 0.0
        self._headers = headers
        self.common_headers = b""
        self._deadlines = deadlines
        self._connections: set[Connection] = set()
        self._per_address: dict[str, int] = {}
        self._listeners: list[Any] = []
        self._emptied: asyncio.Event = asyncio.Event()
        self.expire()
        deadlines.add(self)

    def expire(self) -> None:
        """Once a second: the Date header (RFC 9110 section 6.6.1)."""
        date = formatdate(usegmt=True).encode()
        self.common_headers = b"date: %b\r\n%b" % (date, self._headers)
        self.deadline_s = self.loop.time() // 1 + 1

    async def listen(
        self, host: str, port: int, *, is_shared: bool = False
    ) -> list[tuple[str, int]]:
        """Accept on ``host``; port 0 takes any that is free. Returns the bound addresses.

        ``is_shared``: other processes of ours accept there, too (SO_REUSEPORT, socket(7)).

        Raises OSError if an address can't be had.
        """
        # Any: uvloop's isn't quite what asyncio says that it is, which compiled code minds.
        listener: Any = await self.loop.create_server(
            lambda: Connection(self),
            host,
            port,
            backlog=4096,
            reuse_port=is_shared or None,
            start_serving=True,
        )
        self._listeners.append(listener)
        return [listening.getsockname()[:2] for listening in listener.sockets]

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def admit(self, connection: Connection) -> bool:
        """Count a new connection; False if it is one too many. O(1)."""
        self._connections.add(connection)
        self._deadlines.add(connection)
        count = self._per_address.get(connection.network, 0) + 1
        self._per_address[connection.network] = count
        per_address_max = self.limits.connections_per_address_max
        return len(self._connections) <= self.limits.connections_max and (
            per_address_max is None or count <= per_address_max
        )

    def forget(self, connection: Connection) -> None:
        """Undo ``admit``. O(1)."""
        self._connections.discard(connection)
        self._deadlines.discard(connection)
        count = self._per_address[connection.network] - 1
        if count:
            self._per_address[connection.network] = count
        else:
            del self._per_address[connection.network]
        if self.draining and not self._connections:
            self._emptied.set()

    async def drain(self, limit_s: float) -> None:
        """Stop accepting, let open answers finish for at most ``limit_s``, then cut them.

        Those who are cut are told so, for which there is ``LAST_WORDS_S`` more.
        """
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.close_if_idle()
        if self._connections:
            try:
                async with asyncio.timeout(limit_s):
                    await self._emptied.wait()
            except TimeoutError:
                for connection in tuple(self._connections):
                    connection.stop(ShuttingDown())
                await self._abort_after(LAST_WORDS_S)
        self._deadlines.discard(self)

    async def _abort_after(self, limit_s: float) -> None:
        """Close whatever isn't closed by then."""
        try:
            async with asyncio.timeout(limit_s):
                await self._emptied.wait()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.abort()

    def __repr__(self) -> str:
        return f"<Server {len(self._connections)} connections>"
