"""The floor for Python: a relay on uvloop and httptools that decides nothing.

It parses both sides, keeps connections to its upstream, and passes whole requests and each read of
an answer on. No limits, no keys, no budget, no metrics, no privacy, hardly an error: what it costs
is what two HTTP parsers and four system calls cost in Python, whoever writes the rest.

usage: python -m bench.relay PORT UPSTREAM_PORT
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop

_HEAD = (
    b"POST %b HTTP/1.1\r\nHost: upstream\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n"


class _Side(asyncio.Protocol):
    """One connection, parsed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)


class _Caller(_Side):
    """A caller's: collects the request, and hands it to an upstream connection."""

    def __init__(self, port: int, idle: list[_Upstream]) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._port = port
        self._idle = idle
        self._target, self._body = b"", b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """The target."""
        self._target = url

    def on_body(self, body: bytes) -> None:
        """A part of the request's body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Send it up."""
        data = _HEAD % (self._target, len(self._body)) + self._body
        self._body = b""
        if self._idle:
            self._idle.pop().exchange(self, data)
        else:
            _tasks.add(asyncio.get_running_loop().create_task(self._connect(data)))

    async def _connect(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(
            lambda: _Upstream(self._idle), "127.0.0.1", self._port
        )
        upstream.exchange(self, data)


class _Upstream(_Side):
    """One to the upstream: passes the answer on as it comes."""

    def __init__(self, idle: list[_Upstream]) -> None:
        self._idle = idle

    def exchange(self, caller: _Caller, data: bytes) -> None:
        """Send a request, answer this caller."""
        self._caller = caller
        self._parser = httptools.HttpResponseParser(self)
        self._framing, self._type, self._out = b"", b"", b""
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)
        else:
            self._caller.transport.close()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._out:
            self._caller.transport.write(self._out)
            self._out = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """What the caller's side needs to know."""
        lower = name.lower()
        if lower == b"content-type":
            self._type = value
        elif lower in (b"content-length", b"transfer-encoding"):
            self._framing = b"%b: %b\r\n" % (name, value)

    def on_headers_complete(self) -> None:
        """Write the head."""
        self._is_chunked = b"hunked" in self._framing
        self._out = _ANSWER % (self._type, self._framing)

    def on_body(self, body: bytes) -> None:
        """Pass it on."""
        self._out += b"%x\r\n%b\r\n" % (len(body), body) if self._is_chunked else body

    def on_message_complete(self) -> None:
        """Become idle again."""
        self._out += b"0\r\n\r\n" if self._is_chunked else b""
        self._idle.append(self)


#: The loop keeps only weak references.
_tasks: set[asyncio.Task[None]] = set()


async def _serve(port: int, upstream_port: int) -> None:
    idle: list[_Upstream] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Caller(upstream_port, idle), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
