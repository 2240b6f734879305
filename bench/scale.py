"""How far one store goes: what docs/scaling.md says, measured here.

Prints the gateway's processor time for a request in memory and in Valkey mode, Valkey's own, the
resident bytes of an open stream, the time that a chunk takes and so how many streams a core
carries, how many cores of gateways one Valkey carries, and a simulation of what leases of budget
strand as gateways are added.

usage: python -m bench.scale (needs wrk; about a minute)
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import cast

import uvloop

from freeapi.policy.budget import ALL
from freeapi.state.valkey_leases import Leased, Order
from freeapi.state.valkey_slices import SLICES_PER_CAP, Account, SharedReservation
from tests.answers import STREAM_HEAD, answer, chat_json, chunked, delta
from tests.gateway import UNLIMITED_MODEL, Gateway
from tests.money import PRICES
from tests.raw_client import chat
from tests.valkey_server import serving

CONNECTIONS, SECONDS, ROUNDS, STREAMS = 64, 6, 3, 1_000
#: Numbers that no run reaches, rather than ``off``: what is off costs nothing.
PLENTY = {
    "FREEAPI_CALLER_RPM": "900000000",
    "FREEAPI_CALLER_TPM": "900000000",
    "FREEAPI_CALLER_RPD": "900000000",
    "FREEAPI_CALLER_CONCURRENCY": "1000000",
    "FREEAPI_DAILY_USD": "900000",
    "FREEAPI_CALLER_DAILY_USD": "800000",
    "FREEAPI_MAX_CONNECTIONS_PER_ADDRESS": "100000",
}
CONFIG = f"{UNLIMITED_MODEL}{PRICES}rpm = 900000000\ntpm = 900000000\n"
ANSWER = answer(200, chat_json("x" * 400, 30, 20))
CHUNK = chunked(delta("x"))
#: What a prompt says to be answered at length, how fast models speak, and to how many at once.
TALK, CHUNKS_PER_S, TALKERS = "please talk", 50, 200
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [[%s]]
"""


class _Upstream(asyncio.Protocol):
    """Answers each request at once; a stream says one thing, or goes on if it is asked to talk."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
            head = self._received[:end].lower()
            size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(self._received) < end + size:
                return
            body, self._received = self._received[end : end + size], self._received[end + size :]
            is_stream = b'"stream":true' in body
            self._transport.write(STREAM_HEAD + CHUNK if is_stream else ANSWER)
            if TALK.encode() in body:
                self._talk()

    def _talk(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(CHUNK)
            asyncio.get_running_loop().call_later(1 / CHUNKS_PER_S, self._talk)


def _serve(listener: socket.socket) -> None:
    async def forever() -> None:
        await asyncio.get_running_loop().create_server(_Upstream, sock=listener)
        await asyncio.Event().wait()

    uvloop.run(forever())


@contextmanager
def gateway(state: str) -> Iterator[Gateway]:
    """One before an upstream that is a process of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    upstream = multiprocessing.get_context("fork").Process(target=_serve, args=[listener])
    upstream.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    settings = {"OPENAI_API_KEYS": "sk-bench", "OPENAI_BASE_URL": url, "FREEAPI_STATE": state}
    with tempfile.TemporaryDirectory() as folder:
        one = Gateway(Path(folder), {**PLENTY, **settings}, CONFIG)
        try:
            yield one
        finally:
            one.process.kill()
            one.wait()
            upstream.kill()
            upstream.join()


def cpu_us(one: Gateway) -> tuple[float, int]:
    """Processor µs of the gateway for a request, and requests in all."""
    body = chat("x" * 200).partition(b"\r\n\r\n")[2].decode()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA % body)
        script.flush()
        before_s = one.cpu_s()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "-s", script.name]
        target = f"http://127.0.0.1:{one.port}/v1/chat/completions"
        done = subprocess.run([*command, target], capture_output=True, text=True, check=True)
    assert "Non-2xx" not in done.stdout, done.stdout
    requests = int(done.stdout.split(" requests in ")[0].split()[-1])
    return 1e6 * (one.cpu_s() - before_s) / requests, requests


def of_process(pid: int) -> float:
    """Processor seconds of a process so far."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure_requests() -> tuple[float, float, float]:
    """µs for a request: in memory mode, in Valkey mode, and Valkey's own; medians."""
    alone, shared, stores = [], [], []
    with (
        serving("--appendfsync", "everysec") as server,
        gateway("memory") as one,
        gateway(server.url) as other,
    ):
        for _ in range(ROUNDS):  # in turn, so that the machine's moods meet both
            alone.append(cpu_us(one)[0])
            before_s = of_process(server.pid)
            us, requests = cpu_us(other)
            shared.append(us)
            stores.append(1e6 * (of_process(server.pid) - before_s) / requests)
    return median(alone), median(shared), median(stores)


async def stream_bytes(one: Gateway) -> float:
    """Resident bytes of an open stream."""
    data = chat("x" * 200, stream=True)

    async def open_some(count: int) -> list[asyncio.StreamWriter]:
        opened = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(data)
            await reader.readuntil(b"\n\n")
            opened.append(writer)
        return opened

    kept = await open_some(STREAMS)  # what was free already is used now
    before = one.resident_bytes()
    kept += await open_some(STREAMS)
    taken = (one.resident_bytes() - before) / STREAMS
    for writer in kept:
        writer.transport.abort()
    return taken


class _Listener(asyncio.Protocol):
    """Asks for a stream, and counts what comes of it."""

    chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(chat(TALK, stream=True))

    def data_received(self, data: bytes) -> None:
        _Listener.chunks += data.count(b"data:")


async def chunk_us(one: Gateway) -> float:
    """Processor µs of the gateway for a chunk, at ``TALKERS`` streams."""
    loop = asyncio.get_running_loop()
    listeners = [
        (await loop.create_connection(_Listener, "127.0.0.1", one.port))[0] for _ in range(TALKERS)
    ]
    await asyncio.sleep(1.0)  # until all of them have begun
    before_s, before = one.cpu_s(), _Listener.chunks
    await asyncio.sleep(SECONDS)
    us = 1e6 * (one.cpu_s() - before_s) / (_Listener.chunks - before)
    for listener in listeners:
        listener.abort()
    return us


# --- Simulation -----------------------------------------------------------------------------------


class _Leases:
    """The store's arithmetic (``lease.lua``) for one cap."""

    def __init__(self, nodes: int, cap: int) -> None:
        self.accounts = [
            Account(ALL, "2026-11-23", cap, cap // SLICES_PER_CAP) for _ in range(nodes)
        ]
        self.leased = [0] * nodes
        self.cap = cap
        self.orders = 0

    def order(self, node: int, wanted: int = 0) -> None:
        """Have the node order what it should have, as its purse does."""
        account = self.accounts[node]
        account.wanted = wanted
        order: Order | None = account.order()
        if order is None:
            return
        self.orders += 1
        others = sum(self.leased) - self.leased[node]
        granted = max(order.kept, min(order.wanted, self.cap - others))
        self.leased[node] = granted
        account.take_over(order, Leased(granted, others, 0), 0.0)


def strand(nodes: int, cap: int, worst: int) -> tuple[float, float, float]:
    """Parts of the cap: unspent at the first refusal, unspent at the end, lost if a node dies.

    Besides that, orders for each request. Requests come to random nodes and cost a third.
    """
    chance = random.Random(1)  # noqa: S311 - a simulation is to be the same each time
    leases = _Leases(nodes, cap)
    spent, requests, first, refused = 0, 0, 0.0, 0
    slices = []
    while refused < 3 * nodes:
        node = chance.randrange(nodes)
        account = leases.accounts[node]
        requests += 1
        if account.left < worst:
            leases.order(node, worst)
        if account.left < worst:
            first = first or 1 - spent / cap
            refused += 1
            continue
        refused = 0
        reservation = SharedReservation((account,), worst, lambda: None)
        reservation.settle(worst // 3)
        spent += worst // 3
        leases.order(node)
        if spent < cap / 2:
            slices.append(account.left / cap)
    return (
        first,
        1 - spent / cap,
        max(slices),
    )


def main() -> None:
    """Print it all."""
    alone, shared, store = measure_requests()
    print(f"CPU for a request at {CONNECTIONS} at once, everything on and a cap:")
    print(
        f"  memory {alone:.0f} µs, Valkey {shared:.0f} µs ({shared / alone:.2f} x), "
        f"the server itself {store:.0f} µs"
    )
    carries = 1e6 / store
    print(
        f"one Valkey: {carries:.0f} requests a second, {carries * shared / 1e6:.1f} gateway cores"
    )
    with gateway("memory") as one:
        chunk = uvloop.run(chunk_us(one))
        print(
            f"a chunk, at {TALKERS} streams of {CHUNKS_PER_S} a second: {chunk:.0f} µs, so "
            f"{1e6 / CHUNKS_PER_S / chunk:.0f} streams a core"
        )
        print(f"an open stream: {uvloop.run(stream_bytes(one)) / 1024:.1f} KiB")
    print("budget leases, requests of 1/1000 and 1/50 of the cap at their worst:")
    for part in (1_000, 50):
        for nodes in (1, 3, 10, 30, 100):
            start_s = time.perf_counter()
            first, end, lost = strand(nodes, 10_000_000_000, 10_000_000_000 // part)
            print(
                f"  1/{part:<5} {nodes:4} nodes: first refusal with {first:6.1%} unspent, "
                f"{end:6.1%} at the end, {lost:5.1%} lost with a node "
                f"({time.perf_counter() - start_s:.1f} s)"
            )


if __name__ == "__main__":
    main()
