"""What the tests of ``freeapi.http`` share: uvloop, a server to call, an upstream to be called.

Both ends are real sockets in the test's own loop, so a test sees the callbacks' effects without a
second process. ``Site`` is a server whose application the test plays by hand.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trustme
import uvloop

from freeapi.errors import FreeApiError, UpstreamFailed
from freeapi.http.deadlines import Deadlines
from freeapi.http.pool import Origin, ProxyAddress, Timeouts, UpstreamPool
from freeapi.http.reply import Reply
from freeapi.http.server import Application, Server, ServerLimits
from freeapi.http.upstream import UpstreamConnection
from freeapi.http.wire import Request
from tests import free_ports
from tests.raw_client import Caller, caller
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, send

TEXT = b"content-type: text/plain\r\n"


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the proxy runs on; asyncio's own differs in when it writes and closes."""
    return {"uvloop": uvloop.new_event_loop}


def echo(request: Request, reply: Reply) -> None:
    """Answer with what was understood."""
    reply.send(200, TEXT, b"%b %b %b" % (request.method, request.path, request.body))


async def until(satisfied: Callable[[], object]) -> None:
    """Let the loop run until this is so; raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not satisfied():  # noqa: ASYNC110 - most of what is awaited here has no event
            await asyncio.sleep(0.001)


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: what goes now goes because nothing refers to it any more."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive(kind: type) -> int:
    """How many objects of this class there are."""
    return sum(isinstance(each, kind) for each in gc.get_objects())


class Site:
    """A server, and what reached its application."""

    def __init__(self, app: Application, limits: ServerLimits, shortest_s: float) -> None:
        self.app = app
        self.deadlines = Deadlines(asyncio.get_running_loop(), shortest_s)
        self.calls: list[tuple[Request, Reply]] = []
        #: Callers that left before their answer was complete, by number of the call.
        self.gone: list[int] = []
        self.refused: list[str] = []
        self.server = Server(
            self._called,
            limits,
            self.deadlines,
            headers=b"server: freeapi\r\n",
            refused=self._was_refused,
        )
        self.port = 0

    def _called(self, request: Request, reply: Reply) -> None:
        number = len(self.calls)
        self.calls.append((request, reply))
        reply.on_gone = lambda: self.gone.append(number)
        self.app(request, reply)

    def _was_refused(self, error: FreeApiError) -> None:
        self.refused.append(error.label)

    @property
    def connections(self) -> int:
        """How many are open, as the server counts them."""
        return int(repr(self.server).split()[1])

    async def reply(self, number: int = 0) -> Reply:
        """The reply of this call, once it has arrived."""
        await until(lambda: len(self.calls) > number)
        return self.calls[number][1]

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        """A connection to the server."""
        async with caller(self.port) as connection:
            yield connection

    async def close(self) -> None:
        """Cut everything, and wait until it is cut."""
        await self.server.drain(0)
        await until(lambda: not self.connections)
        self.deadlines.close()


StartSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def start_site() -> AsyncIterator[StartSite]:
    """Start servers with these limits; they are closed at the end."""
    sites: list[Site] = []

    async def start(
        app: Application = echo,
        *,
        body_bytes_max: int = 1_048_576,
        upload_bytes_max: int = 26_214_400,
        connections_max: int = 1_000,
        per_address_max: int | None = None,
        shortest_s: float = 60.0,
        **seconds: float,
    ) -> Site:
        limits = ServerLimits(
            body_bytes_max=body_bytes_max,
            upload_bytes_max=upload_bytes_max,
            connections_max=connections_max,
            connections_per_address_max=per_address_max,
            **seconds,
        )
        site = Site(app, limits, shortest_s)
        sites.append(site)
        [(_, site.port)] = await site.server.listen("127.0.0.1", 0)
        return site

    yield start
    for site in sites:
        await site.close()


@pytest.fixture
async def site(start_site: StartSite) -> Site:
    """A server with roomy limits that echoes."""
    return await start_site()


def hold(request: Request, reply: Reply) -> None:
    """An application that answers later, when the test does."""


# --- The upstream's side --------------------------------------------------------------------------

HEAD = b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
FINAL_S = 3_600.0


class Taken:
    """A sink that notes what it is given, and may refuse it."""

    def __init__(self, refuses_in: str = "") -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.is_ended = False
        self._refuses_in = refuses_in

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    def on_head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Noted; a second one would be a mistake."""
        assert not self.status
        self.status, self.headers = status, headers
        self._refuse("head")

    def on_data(self, data: bytes) -> None:
        """Noted."""
        assert data
        self.pieces.append(data)
        self._refuse("data")

    def on_end(self, data: bytes) -> None:
        """Noted, with what came last."""
        assert not self.is_ended
        if data:
            self.on_data(data)
        self.is_ended = True
        self._refuse("end")

    def _refuse(self, where: str) -> None:
        if self._refuses_in == where:
            raise UpstreamFailed


NewPool = Callable[..., UpstreamPool]


@pytest.fixture
async def new_pool() -> AsyncIterator[NewPool]:
    """Make pools; at the end their connections are closed and none may be left."""
    made: list[tuple[UpstreamPool, Deadlines]] = []

    def new(
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        tls: bool = False,
        socket_path: str | None = None,
        proxy: ProxyAddress | None = None,
        **seconds: float,
    ) -> UpstreamPool:
        deadlines = Deadlines(asyncio.get_running_loop(), 0.05)
        timeouts = Timeouts(**{"connect_s": 5.0, "first_byte_s": 60.0, "idle_s": 60.0, **seconds})
        origin = Origin(host=host, port=port, tls=tls, socket_path=socket_path, proxy=proxy)
        made.append((UpstreamPool(origin, timeouts, deadlines), deadlines))
        return made[-1][0]

    yield new
    for pool, _ in made:
        pool.close()
    await until(lambda: all(repr(pool) == "<UpstreamPool 0 open, 0 idle>" for pool, _ in made))
    for _, deadlines in made:
        deadlines.close()


@pytest.fixture
async def pool(new_pool: NewPool, upstream: ScriptedUpstream) -> UpstreamPool:
    """A pool of connections to the scripted upstream."""
    return new_pool(upstream.port)


def begin(
    connection: UpstreamConnection, sink: Taken, body: bytes = b"{}", within_s: float = FINAL_S
) -> asyncio.Future[None]:
    """Send a request."""
    final_s = asyncio.get_running_loop().time() + within_s
    head = HEAD.replace(b": 2\r", b": %d\r" % len(body))
    return connection.exchange(head, body, sink, final_s).future()


async def ask(pool: UpstreamPool, sink: Taken | None = None) -> Taken:
    """One exchange, on an idle connection if there is one."""
    sink = sink or Taken()
    async with asyncio.timeout(PATIENCE_S):
        await begin(pool.take() or await pool.connect(), sink)
    return sink


# --- Connecting -----------------------------------------------------------------------------------


def sockets_count() -> int:
    """How many sockets this process has open."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    return count


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    return free_ports.free_port()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which the kernel accepts and nobody speaks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def connect_and_cancel(pool: UpstreamPool, ticks: int) -> bool:
    """Cancel after so many ticks; returns whether it was connected before."""
    task = asyncio.get_running_loop().create_task(pool.connect())
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    try:
        connection = await task
    except asyncio.CancelledError:
        return False
    connection.close()
    return True


# --- TLS ------------------------------------------------------------------------------------------


class TlsUpstream(ScriptedUpstream):
    """A scripted upstream behind TLS, which answers every request."""

    async def present(self, certificate: trustme.LeafCert) -> None:
        """Listen with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2", "http/1.1"])
        certificate.configure_cert(context)
        await self.listen(socket.create_server(("127.0.0.1", 0)), context)
        self.plays([send(OK)])


@pytest.fixture
def authority(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trustme.CA:
    """An authority that this process trusts, in the way of operators: ``SSL_CERT_FILE``."""
    authority = trustme.CA()
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return authority


@pytest.fixture
async def tls_upstream() -> AsyncIterator[TlsUpstream]:
    """An upstream that speaks TLS once it has a certificate."""
    upstream = TlsUpstream()
    yield upstream
    await upstream.close()
