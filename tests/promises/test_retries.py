"""Promise: a request is never sent twice where it could be paid for twice.

The one exception is DESIGN section 5's: a reused idle connection that died without a single byte of
an answer, which is what an upstream's keep-alive time-out looks like.
"""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.answers import answer, chat_json
from tests.conftest import StartGateway
from tests.gateway import Gateway
from tests.raw_client import ask, caller, chat, request
from tests.scripted_upstream import (
    Exchange,
    Script,
    ScriptedUpstream,
    Step,
    close,
    hang,
    happens,
    pause,
    reset,
    says,
    send,
)

WHOLE = answer(200, chat_json("Hi"))


@pytest.mark.parametrize("ending", [close(), reset()], ids=["close", "reset"])
@pytest.mark.parametrize("streams", [True, False], ids=["stream", "plain"])
async def test_fresh_connection_that_dies_without_an_answer_is_not_retried(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, ending: Step, streams: bool
) -> None:
    """A request whose fate is unknown gives 502 and is seen by the upstream once."""
    upstream.plays([ending])
    answer = await ask(fresh_gateway.port, chat(stream=streams))
    assert answer.status == 502
    assert answer.error()["code"] == "upstream_unavailable"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("ending", [close(), reset()], ids=["close", "reset"])
async def test_reused_connection_that_dies_without_an_answer_is_retried_once(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, ending: Step
) -> None:
    """An idle connection that the upstream gave up is replaced without the caller noticing."""
    upstream.plays(says("first"), [ending], says("again"))
    assert (await ask(fresh_gateway.port, chat())).text() == "first"
    assert (await ask(fresh_gateway.port, chat())).text() == "again"
    assert [seen.connection for seen in upstream.requests] == [0, 0, 1]


async def test_retry_of_a_reused_connection_is_not_retried(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """The second death in a row, on a fresh connection, is the caller's 502."""
    upstream.plays(says("first"), [close()])
    assert (await ask(fresh_gateway.port, chat())).text() == "first"
    assert (await ask(fresh_gateway.port, chat())).status == 502
    assert len(upstream.requests) == 3


async def test_reused_connection_that_dies_in_its_answer_is_not_retried(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """One byte of an answer is enough to make the request's fate unknown."""
    upstream.plays(says("first"), [send(WHOLE[:1]), reset()])
    assert (await ask(fresh_gateway.port, chat())).text() == "first"
    assert (await ask(fresh_gateway.port, chat())).status == 502
    assert len(upstream.requests) == 2


async def test_idle_connection_closed_by_the_upstream_is_not_used(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """A connection whose end has been seen isn't taken from the pool."""
    upstream.plays([send(WHOLE), close()], says("second"))
    async with caller(gateway.port) as connection:
        assert (await connection.ask(chat())).text() == "Hi"
        await happens(upstream.exchanges[0].gone)
        assert (await connection.ask(request("GET", "/healthz"))).status == 200
        assert (await connection.ask(chat())).text() == "second"
    assert [seen.connection for seen in upstream.requests] == [0, 1]


async def test_answer_that_says_close_is_not_followed_on_its_connection(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """``Connection: close`` of the upstream is obeyed."""
    upstream.plays([send(answer(200, chat_json("Hi"), ("connection", "close")))])
    for number in range(2):
        assert (await ask(gateway.port, chat())).text() == "Hi"
        assert upstream.requests[number].connection == number


async def test_connections_are_reused(upstream: ScriptedUpstream, gateway: Gateway) -> None:
    """Requests of different callers, one after another, share one upstream connection."""
    for number in range(10):
        assert (await ask(gateway.port, chat(str(number)))).text() == str(number)
    assert len(upstream.connections) == 1


@pytest.mark.parametrize("excess", [b"x", WHOLE], ids=["garbage", "a-second-answer"])
async def test_connection_with_bytes_after_its_answer_is_not_reused(
    upstream: ScriptedUpstream, gateway: Gateway, excess: bytes
) -> None:
    """Bytes that nobody asked for can't become the next caller's answer."""
    upstream.plays([send(WHOLE + excess)], says("mine"))
    # The answer itself may be believed or not, but nothing after it is.
    assert (await ask(gateway.port, chat())).status in (200, 502)
    assert (await ask(gateway.port, chat())).text() == "mine"
    assert [seen.connection for seen in upstream.requests] == [0, 1]


async def test_bytes_on_an_idle_connection_close_it(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """An answer that comes when nothing was asked can't become the next caller's answer."""
    answered = asyncio.Event()
    upstream.plays([send(WHOLE), pause(answered), send(WHOLE)], says("mine"))
    async with caller(gateway.port) as connection:
        assert (await connection.ask(chat())).text() == "Hi"
        answered.set()
        await happens(upstream.exchanges[0].gone)
        assert (await connection.ask(chat())).text() == "mine"
    assert upstream.requests[1].connection == 1


async def test_cancelled_request_leaves_no_answer_for_the_next(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """The connection of a caller that left isn't used again, even when its answer came late."""

    async def answer_late(exchange: Exchange) -> None:
        await exchange.gone.wait()

    late: Script = [answer_late]
    upstream.plays(late, says("mine"))
    async with caller(gateway.port) as leaving:
        await leaving.send(chat())
        exchange = await upstream.exchange()
    await happens(exchange.gone)
    assert (await ask(gateway.port, chat())).text() == "mine"
    assert upstream.requests[1].connection == 1


async def test_refused_connection_is_502(start_gateway: StartGateway) -> None:
    """Where nothing listens, the caller gets 502 in OpenAI's shape."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        base_url = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        gateway = await start_gateway(OPENAI_BASE_URL=base_url)
        answer = await ask(gateway.port, chat())
    assert answer.status == 502
    assert answer.error()["code"] == "upstream_unavailable"


async def test_silent_upstream_is_504_and_asked_once(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """No first byte within ``first_byte_s`` gives 504; the request isn't sent again."""
    gateway = await start_gateway("[timeouts]\nfirst_byte_s = 0.3\n")
    upstream.plays([hang()])
    for streams in (False, True):
        answer = await ask(gateway.port, chat(stream=streams))
        assert answer.status == 504
        assert answer.error()["code"] == "upstream_timeout"
    assert len(upstream.requests) == 2
    for exchange in upstream.exchanges:
        await happens(exchange.gone)
