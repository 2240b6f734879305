"""Promise: a caller that reads slowly, or not at all, costs the gateway next to no memory.

Back-pressure has to go all the way: what the caller doesn't read isn't read from the upstream.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.answers import STREAM_HEAD, chunked, delta, head
from tests.gateway import Gateway
from tests.raw_client import ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, Exchange, ScriptedUpstream, echo, happens, send

#: What the upstream would send if it were let to.
OFFERED_BYTES = 200_000_000
#: What both kernels' socket buffers may swallow: twice tcp_wmem and tcp_rmem at their usual limits.
BUFFERED_MAX_BYTES = 50_000_000
#: The gateway's own growth for one such stream.
GROWTH_MAX_BYTES = 20_000_000
#: Round trips through the gateway without a byte taken from the upstream: then it is stalled.
QUIET_ROUNDS = 50

EVENT = delta("x" * 65_000)
PLAIN_HEAD = head(200, ("content-type", "application/json"), ("transfer-encoding", "chunked"))


async def offer_everything(exchange: Exchange) -> None:
    """Send events until all is offered or the gateway is gone."""
    wire = chunked(EVENT)
    while exchange.sent_bytes < OFFERED_BYTES:
        await exchange.send(wire)


async def upstream_stalls(exchange: Exchange, gateway: Gateway) -> None:
    """Wait until the gateway's event loop goes round and round without reading the upstream."""
    async with asyncio.timeout(PATIENCE_S), caller(gateway.port) as clock:
        sent_bytes, quiet = -1, 0
        while quiet < QUIET_ROUNDS:
            await clock.ask(request("GET", "/healthz"))
            quiet = quiet + 1 if exchange.sent_bytes == sent_bytes else 0
            sent_bytes = exchange.sent_bytes


@pytest.mark.parametrize("answer_head", [STREAM_HEAD, PLAIN_HEAD], ids=["stream", "plain"])
async def test_memory_is_bounded_when_the_caller_does_not_read(
    upstream: ScriptedUpstream, fresh_gateway: Gateway, answer_head: bytes
) -> None:
    """An endless answer that the caller doesn't read stalls the upstream, and isn't kept here."""
    await ask(fresh_gateway.port, chat("warm up", stream=True))
    before_bytes = fresh_gateway.resident_bytes()
    upstream.plays([send(answer_head), offer_everything])
    async with caller(fresh_gateway.port) as connection:
        await connection.send(chat(stream=True))
        exchange = await upstream.exchange(1)
        await upstream_stalls(exchange, fresh_gateway)
        assert exchange.sent_bytes < BUFFERED_MAX_BYTES
        assert fresh_gateway.resident_bytes() - before_bytes < GROWTH_MAX_BYTES
        # It goes on where it stopped as soon as the caller reads again.
        stalled_at = exchange.sent_bytes
        answer = await connection.head()
        received_bytes = 0
        async with asyncio.timeout(PATIENCE_S):
            while received_bytes < stalled_at + len(EVENT):
                received_bytes += len(await connection.piece(answer))
                whole, _, rest = answer.body.rpartition(b"\n\n")
                assert whole.replace(EVENT[:-2], b"").strip() == b""
                answer.body = rest
        assert exchange.sent_bytes > stalled_at
    await happens(exchange.gone)


async def test_caller_that_does_not_read_blocks_nobody_else(
    upstream: ScriptedUpstream, gateway: Gateway
) -> None:
    """While one caller doesn't read, others are served."""
    upstream.plays([send(STREAM_HEAD), offer_everything])
    async with caller(gateway.port) as connection:
        await connection.send(chat(stream=True))
        await upstream_stalls(await upstream.exchange(), gateway)
        upstream.script = echo
        for number in range(20):
            assert (await ask(gateway.port, chat(str(number)))).text() == str(number)
