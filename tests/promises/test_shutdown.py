"""Promise: a restart loses nothing that was under way, and never hangs.

SIGTERM closes the door; open streams finish within ``FREEAPI_DRAIN_S``; the exit code is 0.
"""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.answers import DONE, LAST_CHUNK, STREAM_HEAD, answer, chat_json, delta
from tests.conftest import StartGateway
from tests.gateway import Gateway
from tests.raw_client import ask, caller, chat, request
from tests.scripted_upstream import PATIENCE_S, ScriptedUpstream, chunk, hang, happens, pause, send

HEALTH = request("GET", "/healthz")


async def door_is_closed(gateway: Gateway) -> None:
    """Wait until new connections are refused."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                async with caller(gateway.port) as late:
                    await late.send(HEALTH)
                    await late.closed()
            except ConnectionError:
                return


async def test_open_stream_finishes_before_the_process_ends(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """After SIGTERM nobody new is let in, the open stream ends whole, and the exit code is 0."""
    go_on = asyncio.Event()
    rest = [chunk(delta("two")), chunk(DONE), send(LAST_CHUNK)]
    upstream.plays([send(STREAM_HEAD), chunk(delta("one")), pause(go_on), *rest])
    async with caller(fresh_gateway.port) as connection:
        await connection.send(chat(stream=True))
        answer = await connection.head()
        await connection.receive_until(answer, delta("one"))
        fresh_gateway.terminate()
        await door_is_closed(fresh_gateway)
        go_on.set()
        await connection.receive_until(answer, DONE)
        assert await connection.piece(answer) == b""
        assert answer.complete
        assert answer.body == delta("one") + delta("two") + DONE
        assert await connection.closed() == b""
    assert await asyncio.to_thread(fresh_gateway.wait) == 0


async def test_request_under_way_finishes_before_the_process_ends(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """A plain request that waits for its upstream is answered after SIGTERM."""
    go_on = asyncio.Event()
    upstream.plays([pause(go_on), send(answer(200, chat_json("late")))])
    async with caller(fresh_gateway.port) as connection:
        await connection.send(chat())
        await upstream.exchange()
        fresh_gateway.terminate()
        await door_is_closed(fresh_gateway)
        go_on.set()
        given = await connection.answer()
        assert given.text() == "late"
        assert given.header("connection") == "close"
        assert await connection.closed() == b""
    assert await asyncio.to_thread(fresh_gateway.wait) == 0


async def test_stream_longer_than_the_drain_is_cut(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """After ``FREEAPI_DRAIN_S`` its caller is told, upstream is cut, and the exit code is 0."""
    gateway = await start_gateway(FREEAPI_DRAIN_S="1")
    upstream.plays([send(STREAM_HEAD), chunk(delta("one")), hang()])
    async with caller(gateway.port) as connection:
        await connection.send(chat(stream=True))
        answer = await connection.head()
        await connection.receive_until(answer, delta("one"))
        gateway.terminate()
        rest = await connection.closed()
    assert DONE not in rest
    assert b'data: {"error":{"message":"This instance is restarting.' in rest
    assert rest.endswith(LAST_CHUNK)
    await happens(upstream.exchanges[0].gone)
    assert await asyncio.to_thread(gateway.wait) == 0
    assert "Traceback" not in gateway.output()


async def test_request_longer_than_the_drain_is_told(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Who has no answer yet by then gets a 503 ``shutting_down``."""
    gateway = await start_gateway(FREEAPI_DRAIN_S="0.2")
    upstream.plays([hang()])
    async with caller(gateway.port) as connection:
        await connection.send(chat())
        await upstream.exchange()
        gateway.terminate()
        answer = await connection.answer()
    assert (answer.status, answer.error()["code"]) == (503, "shutting_down")
    assert answer.header("connection") == "close"
    await happens(upstream.exchanges[0].gone)
    assert await asyncio.to_thread(gateway.wait) == 0
    assert "Traceback" not in gateway.output()


async def test_idle_connections_do_not_delay_the_end(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """Keep-alive connections without a request are closed at once."""
    async with caller(fresh_gateway.port) as used, caller(fresh_gateway.port) as fresh:
        assert (await used.ask(chat())).text() == "Hi"
        fresh_gateway.terminate()
        assert await used.closed() == b""
        assert await fresh.closed() == b""
        assert await asyncio.to_thread(fresh_gateway.wait) == 0


async def test_second_signal_ends_it_at_once(
    upstream: ScriptedUpstream, fresh_gateway: Gateway
) -> None:
    """An operator who doesn't want to wait for the drain presses Ctrl-C again."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("one")), hang()])
    async with caller(fresh_gateway.port) as connection:
        await connection.send(chat(stream=True))
        await connection.receive_until(await connection.head(), delta("one"))
        fresh_gateway.process.send_signal(signal.SIGINT)
        await door_is_closed(fresh_gateway)
        fresh_gateway.process.send_signal(signal.SIGINT)
        await connection.closed()
    await asyncio.to_thread(fresh_gateway.wait)
    assert "Traceback" not in fresh_gateway.output()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=str)
async def test_quiet_process_ends_on_both_signals(
    fresh_gateway: Gateway, signal_number: signal.Signals
) -> None:
    """With nothing under way, either signal ends the process with exit code 0."""
    assert (await ask(fresh_gateway.port, HEALTH)).status == 200
    fresh_gateway.process.send_signal(signal_number)
    assert await asyncio.to_thread(fresh_gateway.wait) == 0
    assert "Traceback" not in fresh_gateway.output()


async def test_readiness_follows_liveness(gateway: Gateway) -> None:
    """``/healthz`` and ``/readyz`` are 200 on a gateway that can serve."""
    for target in ("/healthz", "/readyz"):
        assert (await ask(gateway.port, request("GET", target))).status == 200
