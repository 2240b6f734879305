"""How the gateway bears up: memory over many requests and aborted streams, and many restarts.

``python -m bench.soak`` runs the full size (200,000 requests, 10,000 aborted streams, 1,000
restarts; some fifteen minutes) and prints what it measured; three numbers as arguments change it.
It insists only that each request is answered and each restart clean: the bounds are those of
``tests/promises/test_soak``, which runs the same loads at a smaller size.

Plan: three processes, so that none of them measures another: the gateway, an upstream that does as
little as it can, and this one, whose callers pipeline their requests over few connections.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import uvloop

from tests.answers import STREAM_HEAD, answer, chat_json, chunked, delta
from tests.conftest import upstream_settings
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.raw_client import chat, request
from tests.scripted_upstream import LINGER_ZERO

REQUESTS, STREAMS, RESTARTS = 200_000, 10_000, 1_000
#: Of each load before memory is looked at for the first time: pools, caches and the allocator's
#: arenas fill up once.
WARM_UP = 0.1

#: In an answer that came from the upstream, and in no other.
MARK = "mark-of-the-upstream"
#: Callers at once, and the requests of one that are under way.
CONNECTIONS, DEPTH = 16, 8
REQUEST = chat("Hi")
STREAM_REQUEST = chat("Hi", stream=True)
HOW_MANY = request("GET", "/streams")

# --- The upstream ---------------------------------------------------------------------------------

_ANSWER = answer(200, chat_json(MARK))
_STREAM = STREAM_HEAD + chunked(delta(MARK))
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)")


class _Answering(asyncio.Protocol):
    """Answers requests at once, begins streams that never end, and tells how many are open."""

    def __init__(self, streams: set[_Answering]) -> None:
        self._streams = streams
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
            length = _LENGTH.search(self._received, 0, end)
            size = end + (int(length[1]) if length else 0)
            if len(self._received) < size:
                return
            self._answer(bytes(self._received[:end]))
            del self._received[:size]

    def _answer(self, head: bytes) -> None:
        if head.startswith(b"GET"):
            self._transport.write(answer(200, b"%d" % len(self._streams), ("connection", "close")))
            self._transport.close()
        elif b"text/event-stream" in head:
            self._streams.add(self)
            self._transport.write(_STREAM)
        else:
            self._transport.write(_ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.discard(self)


async def _serve() -> None:
    streams: set[_Answering] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Answering(streams), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def quick_upstream() -> Iterator[int]:
    """The upstream in a process of its own; yields its port."""
    command = [sys.executable, "-m", "bench.soak", "upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def streams_open(port: int) -> int:
    """How many streams the upstream is still sending."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(HOW_MANY)
        with connection.makefile("rb") as answered:
            return int(answered.read().rpartition(b"\r\n\r\n")[2])


# --- The callers ----------------------------------------------------------------------------------


class _Pipeline(asyncio.Protocol):
    """One caller with so many requests, of which ``DEPTH`` are under way."""

    def __init__(self, count: int) -> None:
        self._unsent = self._unanswered = count
        self._tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send(DEPTH)

    def _send(self, count: int) -> None:
        count = min(count, self._unsent)
        self._unsent -= count
        self._transport.write(REQUEST * count)

    def data_received(self, data: bytes) -> None:
        data = self._tail + data
        answered = data.count(MARK.encode())
        self._tail = data[1 - len(MARK) :]  # too short to be counted twice
        self._unanswered -= answered
        self._send(answered)
        if not self._unanswered:
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(f"{self._unanswered} unanswered"))


class _Aborted(asyncio.Protocol):
    """One caller who leaves after a stream's first event, by FIN or by RST."""

    def __init__(self, *, resets: bool) -> None:
        self._resets = resets
        self._received = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(STREAM_REQUEST)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if MARK.encode() in self._received:
            if self._resets:
                connected = self._transport.get_extra_info("socket")
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if MARK.encode() in self._received:
            self.done.set_result(None)
        else:
            self.done.set_exception(ConnectionError(f"no stream: {self._received[:200]!r}"))


async def answer_requests(port: int, count: int) -> None:
    """Let the gateway answer so many, one at least; raises ConnectionError if it doesn't."""
    loop = asyncio.get_running_loop()

    async def ask(share: int) -> None:
        _, pipeline = await loop.create_connection(lambda: _Pipeline(share), "127.0.0.1", port)
        await pipeline.done

    async with asyncio.TaskGroup() as group:
        for number in range(min(count, CONNECTIONS)):
            group.create_task(ask(len(range(number, count, CONNECTIONS))))


async def abort_streams(port: int, count: int) -> None:
    """Begin and leave so many; raises ConnectionError if one doesn't begin."""
    loop = asyncio.get_running_loop()
    numbers = iter(range(count))

    async def come_and_go() -> None:
        for number in numbers:
            leave = functools.partial(_Aborted, resets=bool(number % 2))
            _, aborted = await loop.create_connection(leave, "127.0.0.1", port)
            await aborted.done

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(come_and_go())


# --- Restarts -------------------------------------------------------------------------------------


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that one server after another may listen on, and that nobody else gets meanwhile."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]


def restart(
    home: Path, settings: dict[str, str], times: int, use: Callable[[Gateway], None]
) -> list[float]:
    """Start, use and stop it on one port again and again; returns the seconds that each took.

    Each end must be clean: exit code 0, and nothing printed that looks like trouble.
    """
    took_s = []
    with reserved_port() as port:
        for _ in range(times):
            begun_s = time.monotonic()
            gateway = Gateway(home, {**settings, "PORT": str(port)}, UNLIMITED_MODEL)
            try:
                use(gateway)
                gateway.stop()
            finally:
                gateway.process.kill()
            took_s.append(time.monotonic() - begun_s)
    return took_s


def use_once(gateway: Gateway) -> None:
    """Let it answer one request."""
    uvloop.run(answer_requests(gateway.port, 1))


# --- The report -----------------------------------------------------------------------------------


def _measure(
    gateway: Gateway, what: str, load: Callable[[int, int], Awaitable[None]], count: int
) -> None:
    """Warm up, apply the load in ten parts, and print how memory and descriptors went."""

    async def run(part: int) -> None:
        await load(gateway.port, part)

    uvloop.run(run(int(count * WARM_UP)))
    first_bytes, files, begun_s = gateway.resident_bytes(), gateway.open_files(), time.monotonic()
    cpu_s = gateway.cpu_s()
    print(f"{what}: after warm-up {first_bytes / 1e6:.1f} MB, {files} open files", flush=True)
    for part in range(10):
        uvloop.run(run(count // 10))
        last_bytes = gateway.resident_bytes()
        growth = last_bytes / first_bytes - 1
        print(
            f"  {(part + 1) * count // 10:9,} {last_bytes / 1e6:7.1f} MB {growth:+.2%}", flush=True
        )
    took_s, cpu_s = time.monotonic() - begun_s, gateway.cpu_s() - cpu_s
    print(f"  {count / took_s:,.0f} a second, {cpu_s / count * 1e6:.0f} µs of CPU each")
    print(f"  {gateway.open_files()} open files", flush=True)


def main(requests: int = REQUESTS, streams: int = STREAMS, restarts: int = RESTARTS) -> None:
    """Run all and print."""
    with tempfile.TemporaryDirectory() as folder, quick_upstream() as port:
        home, settings = Path(folder), upstream_settings(port)
        gateway = Gateway(home / "soak", settings, UNLIMITED_MODEL)
        try:
            _measure(gateway, "requests", answer_requests, requests)
            _measure(gateway, "aborted streams", abort_streams, streams)
            print(f"  {streams_open(port)} streams open at the upstream")
            gateway.stop()
        finally:
            gateway.process.kill()
        for part in range(10):
            took_s = restart(home / "again", settings, restarts // 10, use_once)
            count, each_s = (part + 1) * len(took_s), sum(took_s) / len(took_s)
            print(f"restarts: {count:,}, {each_s:.2f} s each", flush=True)
        print(f"  left: {[path.name for path in (home / 'again').iterdir()]}")


if __name__ == "__main__":
    if sys.argv[1:] == ["upstream"]:
        uvloop.run(_serve())
    else:
        main(*map(int, sys.argv[1:]))
