"""Promise: when the caller goes, the upstream's connection is closed at once.

Tokens that nobody reads are paid for all the same, so this is a promise about money.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.answers import STREAM_HEAD, answer, chat_json, delta
from tests.gateway import Gateway
from tests.raw_client import Caller, ask, caller, chat, request
from tests.scripted_upstream import (
    PATIENCE_S,
    Script,
    ScriptedUpstream,
    chunk,
    hang,
    happens,
    says,
    send,
)

BEFORE_FIRST_BYTE: Script = [hang()]
IN_MID_STREAM: Script = [send(STREAM_HEAD), chunk(delta("Hi")), hang()]
IN_MID_ANSWER: Script = [send(answer(200, chat_json("Hi"))[:-10]), hang()]


@pytest.mark.parametrize("leave", [Caller.close, Caller.reset], ids=["by-close", "by-reset"])
@pytest.mark.parametrize(
    ("script", "streams"),
    [
        (BEFORE_FIRST_BYTE, True),
        (BEFORE_FIRST_BYTE, False),
        (IN_MID_STREAM, True),
        (IN_MID_ANSWER, False),
    ],
    ids=["stream-before-first-byte", "plain-before-first-byte", "mid-stream", "mid-answer"],
)
async def test_upstream_is_closed_when_the_caller_goes(
    upstream: ScriptedUpstream,
    gateway: Gateway,
    script: Script,
    streams: bool,
    leave: Callable[[Caller], None],
) -> None:
    """Whenever the caller leaves, and however, the upstream's connection is closed."""
    upstream.plays(script)
    async with caller(gateway.port) as connection:
        await connection.send(chat(stream=streams))
        exchange = await upstream.exchange()
        if script is IN_MID_STREAM:
            await connection.receive_until(await connection.head(), delta("Hi"))
        assert not exchange.gone.is_set()
        leave(connection)
        await happens(exchange.gone)
    assert len(upstream.requests) == 1


async def test_a_leaving_caller_disturbs_nobody(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """Others' streams go on while fifty callers leave, and the next request is served."""
    upstream.plays(IN_MID_STREAM)
    async with caller(gateway.port) as staying:
        await staying.send(chat(stream=True))
        answer = await staying.head()
        await staying.receive_until(answer, delta("Hi"))

        async def come_and_go() -> None:
            async with caller(gateway.port) as leaving:
                await leaving.send(chat(stream=True))
                await leaving.receive_until(await leaving.head(), delta("Hi"))
                leaving.reset()

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(come_and_go())
        for number in range(1, 51):
            await happens((await upstream.exchange(number)).gone)
        await upstream.exchanges[0].send(b"5\r\nabc\n\n\r\n")
        await staying.receive_until(answer, b"abc\n\n")
    upstream.plays(says("still here"))
    assert (await ask(gateway.port, chat())).text() == "still here"


async def test_leaving_callers_leave_nothing_behind(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """After callers left in every phase, the gateway holds no more descriptors than before."""
    before = gateway.open_files()
    for number, script in enumerate((BEFORE_FIRST_BYTE, IN_MID_STREAM, IN_MID_ANSWER) * 10):
        upstream.plays(script)
        async with caller(gateway.port) as leaving:
            await leaving.send(chat(stream=script is IN_MID_STREAM))
            await upstream.exchange(number)
    async with asyncio.timeout(PATIENCE_S), caller(gateway.port) as clock:
        # Each round trip lets it close what it can; the one counted too much is this connection.
        while gateway.open_files() > before + 1:
            await clock.ask(request("GET", "/healthz"))


async def test_caller_that_goes_while_sending_its_body_costs_nothing(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A request whose body never came to its end isn't sent upstream."""
    async with caller(gateway.port) as connection:
        await connection.send(chat()[:-1])
    assert (await ask(gateway.port, chat("after"))).text() == "after"
    assert [request.prompt() for request in upstream.requests] == ["after"]


async def test_pipelining_caller_that_goes_cancels_the_request_under_way(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A caller with more requests in the queue is noticed to be gone like any other."""
    upstream.plays(BEFORE_FIRST_BYTE)
    async with caller(gateway.port) as connection:
        await connection.send(chat("first") + chat("second"))
        exchange = await upstream.exchange()
        connection.close()
        await happens(exchange.gone)
    # The second may have been started before the end was seen; then it has to be closed as well.
    for later in upstream.exchanges[1:]:
        await happens(later.gone)
