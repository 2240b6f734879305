"""What the shared store costs: a gateway's processor time, and decisions a second of one Valkey.

A decision is ``SharedLimits.admit`` with its settlement, over a caller's and a model's limits and
the caller's share. Issue 7 lets Valkey mode cost 1.6 times memory mode at 64 at once. What one turn
of the loop brings is one call, so the more come at once the less each of them costs.

usage: python -m bench.store
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import uvloop

from freeapi.policy.limits import CallerLimits
from freeapi.policy.meter import Rates
from freeapi.state.valkey import Store
from freeapi.state.valkey_limits import SharedLimits
from freeapi.state.valkey_questions import Ask
from tests.valkey_server import ValkeyServer, serving

REQUESTS, ROUNDS = 6_000, 3
LIMITS = CallerLimits(rpm=10**9, tpm=10**9, rpd=10**9, concurrency=10**6)
MODEL = Rates(10**9, 10**9)


async def rate(call: Callable[[int], Awaitable[object]], at_once: int) -> tuple[float, float]:
    """Processor µs a call of this process, and calls a second; the best of a few rounds."""
    best = (float("inf"), 0.0)

    async def some(first: int) -> None:
        for number in range(first, REQUESTS, at_once):
            await call(number)

    for _ in range(ROUNDS):
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for first in range(at_once):
                group.create_task(some(first))
        cpu_us = 1e6 * (time.process_time() - cpu_s) / REQUESTS
        best = min(best, (cpu_us, REQUESTS / (time.perf_counter() - wall_s)))
    return best


def server_cpu_s(info: bytes) -> float:
    """Processor seconds of the server so far."""
    fields = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    return float(fields[b"used_cpu_user"]) + float(fields[b"used_cpu_sys"])


async def measure(server: ValkeyServer) -> None:
    """Print it all."""
    store = Store(server.url)
    limits = SharedLimits(store, clock=time.time)
    await store.start()
    limits.begin()

    async def decide(number: int) -> None:
        caller = b"%08d" % (number % 1_000)
        ask = Ask(caller, LIMITS, "model", MODEL, 300, 1_000, 10_000, 10**15)
        (await limits.admit(ask)).settle(200, 5_000, 700)

    async def ping(_: int) -> None:
        await store.command(b"PING")

    for name, call in (("PING", ping), ("admit + settle", decide)):
        for at_once in (1, 8, 64):
            before_s = server_cpu_s(await store.command(b"INFO", b"cpu"))
            cpu_us, a_second = await rate(call, at_once)
            server_s = server_cpu_s(await store.command(b"INFO", b"cpu")) - before_s
            server_us = 1e6 * server_s / REQUESTS / ROUNDS
            print(
                f"{name:15} {at_once:3} at once: {cpu_us:6.1f} µs CPU here, {server_us:6.1f} µs in "
                f"the server ({1e6 / server_us:7.0f} a second at most), {a_second:6.0f} a second"
            )
    memory = await store.command(
        b"MEMORY", b"USAGE", b"{freeapi}:caller:" + b"00000001".hex().encode()
    )
    print(f"a caller takes {memory} bytes in the server")
    await limits.close()
    await store.close()


if __name__ == "__main__":
    with serving() as valkey:
        uvloop.run(measure(valkey))
