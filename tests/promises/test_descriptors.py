"""Promise: running out of file descriptors hurts nobody who is there already, and heals by itself.

The limit is lowered on the running process (prlimit(2)), so that a few dozen connections use it up.
With its default settings the gateway can't get there: it admits as many callers as the limit has
room for, each with a connection to an upstream.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.answers import DONE, STREAM_HEAD, delta
from tests.conftest import StartGateway
from tests.gateway import Gateway
from tests.raw_client import Caller, ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, chunk, echo, pause, send

HEALTH = request("GET", "/healthz")
#: A few more than a gateway without callers holds.
FILES_MAX = 64
#: As many callers as can't all be let in.
CROWD = 100
#: How long a full gateway is watched, and the most processor time that it may use of a second. A
#: loop that spins would use all of it; one that is idle, a thousandth.
WATCHED_S = 1.0
BUSY_MAX_S = 0.3


@pytest.fixture
async def small(upstream: ScriptedUpstream, start_gateway: StartGateway) -> Gateway:
    """A gateway that may open few files, and doesn't know that it can't have many callers."""
    gateway = await start_gateway(
        FREEAPI_MAX_CONNECTIONS="1000", FREEAPI_MAX_CONNECTIONS_PER_ADDRESS="1000"
    )
    assert (await ask(gateway.port, chat())).text() == "Hi"
    limits = (FILES_MAX, FILES_MAX)
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, limits)
    return gateway


@asynccontextmanager
async def crowd(gateway: Gateway) -> AsyncIterator[list[Caller]]:
    """So many callers that some can't be let in; yields those who were."""
    async with AsyncExitStack() as connections:
        callers = [
            await connections.enter_async_context(caller(gateway.port)) for _ in range(CROWD)
        ]
        served = await asyncio.gather(*(is_served(one) for one in callers))
        yield [one for one, is_in in zip(callers, served, strict=True) if is_in]


async def is_served(one: Caller) -> bool:
    """Whether the caller gets an answer; False if it is disconnected."""
    try:
        return (await one.ask(HEALTH)).status == 200
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


async def test_who_is_there_goes_on_when_no_file_is_left(
    upstream: ScriptedUpstream, small: Gateway
) -> None:
    """A stream under way and the callers let in are served while new ones are turned away."""
    go_on = asyncio.Event()
    upstream.plays(
        [send(STREAM_HEAD), chunk(delta("one")), pause(go_on), chunk(DONE), send(b"0\r\n\r\n")]
    )
    async with caller(small.port) as streaming:
        await streaming.send(chat(stream=True))
        answer = await streaming.head()
        await streaming.receive_until(answer, delta("one"))
        async with crowd(small) as admitted:
            assert 0 < len(admitted) < CROWD
            assert small.open_files() == FILES_MAX
            go_on.set()
            await streaming.receive_until(answer, DONE)
            assert await streaming.piece(answer) == b""
            assert answer.complete
            for one in admitted:
                assert (await one.ask(HEALTH)).status == 200


async def test_full_process_does_not_spin(small: Gateway) -> None:
    """Callers who can't be let in cost next to no processor time; who is in stays connected."""
    async with crowd(small) as admitted, AsyncExitStack() as late:
        for _ in range(CROWD):
            await late.enter_async_context(caller(small.port))
        begun_s, cpu_s = time.monotonic(), small.cpu_s()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(WATCHED_S):
                await admitted[0].closed()
        assert small.cpu_s() - cpu_s < BUSY_MAX_S * (time.monotonic() - begun_s)


async def test_callers_are_let_in_again_when_others_leave(
    upstream: ScriptedUpstream, small: Gateway
) -> None:
    """Nothing has to be restarted: as soon as there is room the next caller is served in full."""
    upstream.script = echo
    for number in range(3):
        async with crowd(small) as admitted:
            assert len(admitted) < CROWD
        assert await first_answer(small, str(number)) == str(number)


async def first_answer(gateway: Gateway, text: str) -> str:
    """Ask until the gateway has seen that the crowd is gone."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                return (await ask(gateway.port, chat(text))).text()


async def test_request_that_finds_no_file_for_its_upstream_is_502(
    upstream: ScriptedUpstream, small: Gateway
) -> None:
    """Who is let in, but for whose connection to the upstream no file is left, is told so."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("one"))])
    async with caller(small.port) as holding, crowd(small) as admitted:
        # The kept-alive connection to the upstream goes to the first; there is none for the second.
        await holding.send(chat(stream=True))
        await holding.receive_until(await holding.head(), delta("one"))
        refused = await admitted[0].ask(chat())
        assert (refused.status, refused.error()["code"]) == (502, "upstream_unavailable")
        assert (await admitted[0].ask(HEALTH)).status == 200
    upstream.script = echo
    assert await first_answer(small, "afterwards") == "afterwards"


@pytest.mark.parametrize("settings", [{}, {"FREEAPI_MAX_CONNECTIONS": "1000"}], ids=["", "capped"])
async def test_soft_limit_is_raised(start_gateway: StartGateway, settings: dict[str, str]) -> None:
    """The limit is raised to what the system allows, also where the operator sets the cap."""
    mine = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (mine[1] // 2, mine[1]))  # which a child inherits
    try:
        gateway = await start_gateway(**settings)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, mine)
    assert resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE) == (mine[1], mine[1])
