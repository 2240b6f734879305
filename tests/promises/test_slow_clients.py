"""Promise: callers who are slow, or too many, can't keep others out.

The server's limits are fixed (10 s for a head, 30 s for a body, 60 s for a reader who takes
nothing), so here only the shortest is waited for; the same code meets the others within a tenth of
a second in ``tests/http/test_deadlines``. What a slow reader costs is ``test_slow_reader``'s.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

import pytest

from tests.conftest import StartGateway
from tests.gateway import Gateway
from tests.raw_client import Answer, Caller, ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream

HEALTH = request("GET", "/healthz")
#: Within which a head has to be complete. Source: DESIGN section 4.1.
HEAD_S = 10.0
#: How often a slow caller sends one more byte.
DRIP_S = 1.0
CONNECTIONS_MAX = 8


async def drip_a_head(gateway: Gateway) -> Answer:
    """Send a head byte by byte, too slowly, until there is an answer."""
    async with caller(gateway.port) as slow:
        for byte in HEALTH:
            await slow.send(bytes([byte]))
            with suppress(TimeoutError):
                async with asyncio.timeout(DRIP_S):
                    return await slow.answer()
    raise AssertionError("it was waited for to its end")


async def say_nothing(gateway: Gateway) -> bytes:
    """Connect and wait until the gateway has enough; returns its last words."""
    async with caller(gateway.port) as silent:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    return await silent.closed()


async def test_slow_and_silent_callers_are_cut(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A head that drips is 408 after 10 s, silence is cut by then; others are served meanwhile."""
    async with asyncio.timeout(HEAD_S + PATIENCE_S), asyncio.TaskGroup() as group:
        dripping = [group.create_task(drip_a_head(gateway)) for _ in range(5)]
        silent = [group.create_task(say_nothing(gateway)) for _ in range(5)]
        while not all(task.done() for task in (*dripping, *silent)):
            assert (await ask(gateway.port, chat())).text() == "Hi"
            await asyncio.wait([*dripping, *silent], timeout=DRIP_S)
    assert {task.result().status for task in dripping} == {408}
    assert {task.result() for task in silent} == {b""}


@pytest.mark.parametrize(
    "setting", ["FREEAPI_MAX_CONNECTIONS", "FREEAPI_MAX_CONNECTIONS_PER_ADDRESS"]
)
async def test_connections_are_capped(
    upstream: ScriptedUpstream, start_gateway: StartGateway, setting: str
) -> None:
    """Beyond the cap a caller is told to come back, again and again, and let in when one leaves."""
    gateway = await start_gateway(**{setting: str(CONNECTIONS_MAX)})
    async with AsyncExitStack() as connections:
        inside = [
            await connections.enter_async_context(caller(gateway.port))
            for _ in range(CONNECTIONS_MAX)
        ]
        for one in inside:
            assert (await one.ask(HEALTH)).status == 200
        full = gateway.open_files()
        for _ in range(3 * CONNECTIONS_MAX):
            await is_told_to_come_back(gateway)
        for one in inside:
            assert (await one.ask(chat())).text() == "Hi"
        await no_more_than(full + 1, gateway, inside[0])  # one to the upstream
        inside[-1].close()
        assert (await first_answer(gateway)).text() == "Hi"


async def is_told_to_come_back(gateway: Gateway) -> None:
    """One connection that is too many."""
    async with caller(gateway.port) as outside:
        refused = await outside.answer()
        assert (refused.status, refused.error()["code"]) == (429, "capacity_exceeded")
        assert refused.header("retry-after") == "1"
        assert refused.header("connection") == "close"
        assert await outside.closed() == b""


async def no_more_than(files: int, gateway: Gateway, clock: Caller) -> None:
    """Wait until the gateway has let go of those turned away."""
    async with asyncio.timeout(PATIENCE_S):
        while gateway.open_files() > files:
            assert (await clock.ask(HEALTH)).status == 200


async def first_answer(gateway: Gateway) -> Answer:
    """Ask until the gateway has seen that there is room."""
    async with asyncio.timeout(PATIENCE_S):
        while (given := await ask(gateway.port, chat())).status == 429:
            pass
    return given
