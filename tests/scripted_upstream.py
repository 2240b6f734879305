"""A real TCP (or TLS) server that plays an upstream, step by step, well or badly behaved.

It is not a mock of our code: the gateway under test meets it over a socket, as it meets OpenAI.
It is not an HTTP server either: an answer is the raw bytes of the script, so it can be wrong in
every way that a network or an upstream can be wrong.

Plan: each connection reads requests and records them; for each, the script is a list of steps
(send these bytes, wait for that event, hang, reset, close) that ``ScriptedUpstream.script`` chooses
by looking at the request. It runs in the test's own event loop, so tests and steps share
``asyncio.Event``; blocking SDKs go to a thread.

Invariants: nothing sleeps for a fixed time; every wait is bounded by ``PATIENCE_S``; a script that
fails makes the test fail when the upstream is closed.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from tests.answers import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    answer,
    chat_json,
    chunked,
    delta,
    usage_event,
)

#: Longest wait for anything that should happen at once: only what never comes should be told by it,
#: on however busy a machine.
PATIENCE_S = 30.0
#: Ask the kernel to forget the connection (RST) rather than to end it (FIN). Source: socket(7).
LINGER_ZERO = struct.pack("ii", 1, 0)

# --- Requests and steps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    #: Which connection it came on, counted from 0.
    connection: int

    def header(self, name: str) -> str | None:
        """The header's value; None where it is missing or there is more than one."""
        values = [value for key, value in self.headers if key.lower() == name]
        return values[0] if len(values) == 1 else None

    def json(self) -> dict[str, Any]:
        """The body as an object."""
        return cast(dict[str, Any], json.loads(self.body))

    def prompt(self) -> str:
        """The text of the last message: how a script knows which test request this is."""
        return str(self.json()["messages"][-1]["content"])


class PeerGone(Exception):
    """The gateway closed the connection in the middle of the script."""


class Exchange:
    """One request and the connection that its answer goes to: what a step acts upon."""

    def __init__(self, request: Request, connection: Connection) -> None:
        self.request = request
        self._connection = connection
        #: Set when the gateway closes or resets this connection.
        self.gone = connection.gone

    @property
    def sent_bytes(self) -> int:
        """What the gateway's kernel or ours has taken so far."""
        return self._connection.sent_bytes

    async def send(self, data: bytes) -> None:
        """Send raw bytes; waits while the gateway doesn't read."""
        await self._connection.send(data)

    def end(self, *, reset: bool) -> None:
        """Close the connection, by RST or properly."""
        self._connection.end(reset=reset)


Step = Callable[[Exchange], Awaitable[None]]
Script = Sequence[Step]


def send(data: bytes) -> Step:
    """The step that sends raw bytes."""
    return lambda exchange: exchange.send(data)


def chunk(data: bytes) -> Step:
    """The step that sends one HTTP chunk."""
    return send(chunked(data))


def pause(until: asyncio.Event) -> Step:
    """The step that waits for the test."""

    async def step(exchange: Exchange) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await until.wait()

    return step


def hang() -> Step:
    """The step that says nothing more until the gateway closes the connection."""

    async def step(exchange: Exchange) -> None:
        await exchange.gone.wait()

    return step


def close() -> Step:
    """The step that ends the connection properly (FIN)."""
    return _end(reset=False)


def reset() -> Step:
    """The step that breaks the connection (RST)."""
    return _end(reset=True)


def _end(*, reset: bool) -> Step:
    async def step(exchange: Exchange) -> None:
        exchange.end(reset=reset)

    return step


def stream(*events: bytes) -> list[Step]:
    """A well-behaved stream of these events, each sent by itself."""
    return [send(STREAM_HEAD), *(chunk(one) for one in events), send(LAST_CHUNK)]


def says(text: str) -> list[Step]:
    """A well-behaved non-streaming completion."""
    return [send(answer(200, chat_json(text)))]


def echo(request: Request) -> Script:
    """The default script: the answer is the prompt, streamed in two pieces if asked."""
    text = request.prompt()
    if not request.json().get("stream"):
        return says(text)
    half = len(text) // 2
    return stream(delta(text[:half]), delta(text[half:]), usage_event(), DONE)


# --- The server -----------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One accepted connection: reads requests, plays their scripts."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._received = bytearray()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.gone = asyncio.Event()
        self.sent_bytes = 0
        #: What TLS's ALPN chose; None without TLS or without a choice.
        self.protocol: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, unless a test wants a connection to die at once."""
        self._transport = cast(asyncio.Transport, transport)
        self._number = self._upstream.accepted(self)
        if (tls := transport.get_extra_info("ssl_object")) is not None:
            self.protocol = tls.selected_alpn_protocol()
        # Not a TaskGroup: pytest-asyncio enters and leaves a fixture in different tasks. The task
        # is kept, and its failure raised, by the upstream.
        self.task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        """Keep the bytes for the reader."""
        self._received += data
        self._news.set()

    def eof_received(self) -> None:
        """The gateway closed its side: for a proxy this means that it is gone."""
        self._lost()

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway is gone."""
        self._lost()

    def _lost(self) -> None:
        self.gone.set()
        self._news.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """The gateway reads more slowly than the script sends."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The gateway reads again."""
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """Write and wait for room; raises PeerGone."""
        if self.gone.is_set():
            raise PeerGone
        self._transport.write(data)
        await self._writable.wait()
        self.sent_bytes += len(data)

    def end(self, *, reset: bool) -> None:
        """Close properly, or by RST; nothing if it is closed already."""
        if reset and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            self._transport.abort()
        else:
            self._transport.close()

    async def _serve(self) -> None:
        try:
            while True:
                exchange = Exchange(await self._read_request(), self)
                for step in self._upstream.asked(exchange):
                    await step(exchange)
                if not self._upstream.hears_out:
                    return  # what comes next is no request
        except PeerGone:
            return
        finally:
            # A script that fails must not leave the gateway, and so the test, waiting.
            self.end(reset=True)

    async def _read_request(self) -> Request:
        end = await self._wait_for_bytes(lambda: self._received.find(b"\r\n\r\n") + 1) + 3
        first, *lines = self._received[: end - 4].decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        headers = tuple((k, v.strip()) for k, _, v in (line.partition(":") for line in lines))
        del self._received[:end]
        fields = {k.lower(): v for k, v in headers}
        if self._upstream.hears_out and fields.get("transfer-encoding") == "chunked":
            body = await self._read_chunks()
        else:
            body = await self._take(int(fields.get("content-length", 0)))
        return Request(method, target, headers, body, self._number)

    async def _read_chunks(self) -> bytes:
        """A body in HTTP's chunked coding, as forms come."""
        pieces: list[bytes] = []
        while True:
            line_bytes = await self._wait_for_bytes(lambda: self._received.find(b"\r\n") + 1) + 1
            size_bytes = int(await self._take(line_bytes), 16)
            piece = await self._take(size_bytes + 2)
            if not size_bytes:
                return b"".join(pieces)
            pieces.append(piece[:-2])
            self._upstream.received(size_bytes)

    async def _take(self, size_bytes: int) -> bytes:
        await self._wait_for_bytes(lambda: len(self._received) >= size_bytes)
        taken = bytes(self._received[:size_bytes])
        del self._received[:size_bytes]
        return taken

    async def _wait_for_bytes(self, satisfied: Callable[[], int]) -> int:
        while not (result := satisfied()):
            if self.gone.is_set():
                raise PeerGone
            self._news.clear()
            await self._news.wait()
        return result


class ScriptedUpstream:
    """The listening server, what it saw, and what it answers."""

    def __init__(self) -> None:
        #: Chooses the script of each request; a test replaces it.
        self.script: Callable[[Request], Script] = echo
        self.exchanges: list[Exchange] = []
        self.connections: list[Connection] = []
        #: False: a form is answered when its head is there, and the rest of it isn't read.
        self.hears_out = True
        #: Of all forms, complete or not.
        self.form_bytes = 0
        self._news = asyncio.Event()

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accept connections on this listening socket, which is closed at the end."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), sock=listener, ssl=tls, backlog=1024
        )
        self.port: int = listener.getsockname()[1]

    async def close(self) -> None:
        """Drop every connection; raises what went wrong in a script."""
        self._server.close()
        tasks = [connection.task for connection in self.connections]
        for connection in self.connections:
            connection.end(reset=True)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    @property
    def requests(self) -> list[Request]:
        """All requests seen, oldest first."""
        return [exchange.request for exchange in self.exchanges]

    def plays(self, *scripts: Iterable[Step]) -> None:
        """Answer the next requests by these scripts in turn; the last one stays."""
        waiting = [list(script) for script in scripts]
        self.script = lambda _request: waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def accepted(self, connection: Connection) -> int:
        """Register a connection; returns its number."""
        self.connections.append(connection)
        self._news.set()
        return len(self.connections) - 1

    def asked(self, exchange: Exchange) -> Script:
        """Record a request; returns what to do about it."""
        self.exchanges.append(exchange)
        self._news.set()
        return self.script(exchange.request)

    def received(self, size_bytes: int) -> None:
        """Count what has come of forms."""
        self.form_bytes += size_bytes
        self._news.set()

    async def has_received(self, size_bytes: int) -> None:
        """Wait for so many bytes of forms."""
        await self._until(lambda: self.form_bytes >= size_bytes)

    async def exchange(self, number: int = 0) -> Exchange:
        """The exchange with this number, once its request has arrived."""
        await self._until(lambda: len(self.exchanges) > number)
        return self.exchanges[number]

    async def connection(self, number: int = 0) -> Connection:
        """The connection with this number, once it is accepted."""
        await self._until(lambda: len(self.connections) > number)
        return self.connections[number]

    async def _until(self, satisfied: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not satisfied():
                self._news.clear()
                await self._news.wait()


def listening_socket() -> socket.socket:
    """A socket that listens on a free port of 127.0.0.1."""
    # Named as TCP, because asyncio sets TCP_NODELAY on no other; without it, each second send would
    # wait 40 ms for an acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


async def happens(what: asyncio.Event) -> None:
    """Wait for an event that has to come at once; raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        await what.wait()
