"""Promise: what is short for a moment is waited for, and what isn't worth it is said at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from itertools import repeat

from openai import AsyncOpenAI

from tests.answers import answer
from tests.conftest import StartGateway
from tests.crowd import ADDRESS, crowd, events, number
from tests.gateway import MODEL, Gateway
from tests.promises.test_limits_sdk import HELLO
from tests.raw_client import Caller, ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, says, send

#: One at once and then one every ten seconds: whoever comes second waits for as long as it likes.
SLOW = "rpm = 6\n"
#: Ten at once and then one a second.
STEADY = "rpm = 60\n"


async def waiting(gateway: Gateway, count: int) -> None:
    """Until so many wait, as ``GET /status`` says."""
    async with asyncio.timeout(PATIENCE_S):
        page = await ask(gateway.port, request("GET", "/status"))
        while page.json()["waiting"] != count:
            page = await ask(gateway.port, request("GET", "/status"))


async def line_up(stack: AsyncExitStack, gateway: Gateway, count: int) -> list[Caller]:
    """So many callers who wait for an answer."""
    callers = [await stack.enter_async_context(caller(gateway.port)) for _ in range(count)]
    for one in callers:
        await one.send(chat())
    await waiting(gateway, count)
    return callers


async def test_more_than_the_model_may_do_is_waited_for(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Of 105 at once, of which 100 are let in and then ten a second, all are answered."""
    gateway = await start_gateway("rpm = 600\n")
    start_s = time.monotonic()
    answers = await crowd(gateway.port, chat(), repeat(ADDRESS, 105))
    assert {one.status for one in answers} == {200}
    assert time.monotonic() - start_s >= 0.4


async def test_place_of_who_leaves_is_free_at_once(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """A caller's ninth is refused; after one of the eight left, which sends nothing, it waits."""
    gateway = await start_gateway(SLOW, FREEAPI_QUEUE_S="100")
    assert (await ask(gateway.port, chat())).status == 200
    async with AsyncExitStack() as stack:
        callers = await line_up(stack, gateway, 8)
        refused = await ask(gateway.port, chat())
        assert refused.error()["code"] == "capacity_exceeded"
        assert number(refused, "retry-after") >= 1
        callers[3].reset()
        await waiting(gateway, 7)
        late = await stack.enter_async_context(caller(gateway.port))
        await late.send(chat())
        await waiting(gateway, 8)
        assert len(upstream.requests) <= 2
    await waiting(gateway, 0)


async def test_time_is_up_at_the_deadline(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Who isn't served within the longest wait is told so then, and when to come back."""
    gateway = await start_gateway(STEADY, FREEAPI_QUEUE_S="1.5")
    assert {one.status for one in await crowd(gateway.port, chat(), repeat(ADDRESS, 10))} == {200}
    start_s = time.monotonic()
    answers = await crowd(gateway.port, chat(), repeat(ADDRESS, 5))
    elapsed_s = time.monotonic() - start_s
    refused = [one for one in answers if one.status == 429]
    assert 1 <= len(refused) <= 4
    assert {one.error()["code"] for one in refused} == {"capacity_exceeded"}
    assert {one.header("x-should-retry") for one in refused} == {None}
    assert all(1 <= number(one, "retry-after") <= 5 for one in refused)
    assert 1.5 <= elapsed_s < PATIENCE_S
    await waiting(gateway, 0)


async def test_hopeless_is_refused_at_once_with_an_honest_time(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Capacity that comes after the longest wait: 429 now, and who returns as told is served."""
    gateway = await start_gateway("rpm = 30\n", FREEAPI_QUEUE_S="1", FREEAPI_REQUEST_LOG="on")
    asked = 1
    while (refused := await ask(gateway.port, chat())).status == 200:
        asked += 1
    assert refused.error()["code"] == "capacity_exceeded"
    # Of two seconds: had it waited for its longest, less than one would be left.
    assert 1_000 < number(refused, "retry-after-ms") <= 2_000
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="x", max_retries=1) as client:
        completion = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert completion.choices[0].message.content == "Hi"
    await asyncio.to_thread(gateway.stop)
    assert events(gateway, "request") == asked + 2


async def test_keys_that_cool_for_a_moment_are_waited_for(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """After the upstream's "in 300 ms" the next request waits as long, and is answered."""
    gateway = await start_gateway()
    soon = answer(429, b'{"error":{"code":"rate_limit_exceeded"}}', ("retry-after-ms", "300"))
    upstream.plays([send(soon)], says("here again"))
    refused = await ask(gateway.port, chat())
    told_s = time.monotonic()
    assert refused.error()["code"] == "capacity_exceeded"
    assert 0 < number(refused, "retry-after-ms") <= 300
    assert (await ask(gateway.port, chat())).text() == "here again"
    assert time.monotonic() - told_s > number(refused, "retry-after-ms") / 1_000 - 0.01


async def test_stopping_ends_the_queue(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Those who still wait when the gateway has to end are cut off, and it ends cleanly."""
    gateway = await start_gateway(SLOW, FREEAPI_QUEUE_S="100", FREEAPI_DRAIN_S="0")
    assert (await ask(gateway.port, chat())).status == 200
    async with AsyncExitStack() as stack:
        callers = await line_up(stack, gateway, 8)
        await asyncio.to_thread(gateway.stop)
        for one in callers:
            await one.closed()
    assert events(gateway, "crash") == 0
    assert len(upstream.requests) <= 2
