"""Caddy and nginx, with the configurations that we ship, in front of a real gateway.

What a proxy in front can spoil: streams (by buffering), the caller's leaving (by going on), the
caller's address (by believing it, or by hiding it), uploads (by a limit of its own), privacy (by
its log).
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.answers import DONE, LAST_CHUNK, STREAM_HEAD, delta
from tests.conftest import StartGateway
from tests.deploy.fronts import DEPLOY, Front, caddy, nginx, replaced, running, tool
from tests.free_ports import free_port
from tests.gateway import Gateway
from tests.raw_client import Answer, Caller, ask, caller, chat
from tests.scripted_upstream import (
    PATIENCE_S,
    ScriptedUpstream,
    chunk,
    hang,
    happens,
    pause,
    send,
)

Make = Callable[[Path, int, int], list[str]]
#: One request at once, and then one every ten seconds.
ONE_AT_ONCE = "6"
CANARY = "canary-of-a-caller"
UPLOAD_BYTES = 20 * 1024 * 1024


@pytest.fixture
async def behind(start_gateway: StartGateway) -> Gateway:
    """A gateway that believes the one proxy in front of it."""
    return await start_gateway(
        FREEAPI_PROXY_HOPS="1", FREEAPI_MAX_BODY_BYTES=str(UPLOAD_BYTES + 4096)
    )


@pytest.fixture(params=[caddy, nginx], ids=lambda make: make.__name__)
async def front(
    request: pytest.FixtureRequest, behind: Gateway, tmp_path: Path
) -> AsyncIterator[Front]:
    """Each of the proxies in front of it."""
    async with _front(request.param, tmp_path, behind.port) as front:
        yield front


def _front(make: Make, folder: Path, gateway_port: int) -> AbstractAsyncContextManager[Front]:
    port = free_port()
    own = folder / "front"
    own.mkdir()
    return running(own, port, make(own, port, gateway_port))


async def ask_from(address: str, port: int, data: bytes) -> Answer:
    """One request from an address of this machine's."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        return await Caller(reader, writer).ask(data)
    finally:
        writer.close()


async def test_each_event_passes_at_once(upstream: ScriptedUpstream, front: Front) -> None:
    """The first event reaches the caller before the last one is sent."""
    go_on = asyncio.Event()
    last = [chunk(delta("you")), chunk(DONE), send(LAST_CHUNK)]
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), pause(go_on), *last])
    async with caller(front.port) as connection:
        await connection.send(chat(stream=True))
        answer = await connection.head()
        await connection.receive_until(answer, delta("Hi"))
        go_on.set()
        await connection.receive_until(answer, DONE)
    assert answer.status == 200


async def test_upstream_is_closed_when_the_caller_goes(
    upstream: ScriptedUpstream, front: Front
) -> None:
    """A caller that leaves in mid-stream ends the upstream's work, through the proxy."""
    upstream.plays([send(STREAM_HEAD), chunk(delta("Hi")), hang()])
    async with caller(front.port) as connection:
        await connection.send(chat(stream=True))
        exchange = await upstream.exchange()
        await connection.receive_until(await connection.head(), delta("Hi"))
        connection.close()
        await happens(exchange.gone)


@pytest.mark.parametrize("make", [caddy, nginx], ids=lambda make: make.__name__)
async def test_callers_are_told_apart_by_their_own_address(
    start_gateway: StartGateway, tmp_path: Path, make: Make
) -> None:
    """Two addresses are two callers, and what one claims in X-Forwarded-For makes no third."""
    gateway = await start_gateway(FREEAPI_PROXY_HOPS="1", FREEAPI_CALLER_RPM=ONE_AT_ONCE)
    claim = chat("Hi", ("x-forwarded-for", "192.0.2.7"))
    async with _front(make, tmp_path, gateway.port) as front:
        assert (await ask_from("127.0.0.1", front.port, chat())).status == 200
        assert (await ask_from("127.0.0.1", front.port, claim)).status == 429
        assert (await ask_from("127.0.0.2", front.port, claim)).status == 200


async def test_big_upload_passes(upstream: ScriptedUpstream, front: Front) -> None:
    """A body of 20 MB gets through to the gateway, whose own limit is the one that counts."""
    assert (await ask(front.port, chat("x" * UPLOAD_BYTES))).status == 200
    assert len(upstream.requests[0].body) > UPLOAD_BYTES


async def test_proxy_logs_no_caller(behind: Gateway, front: Front) -> None:
    """Where the gateway is gone, the proxy logs neither the caller's headers nor its address."""
    await asyncio.to_thread(behind.stop)
    answer = await ask_from("127.0.0.3", front.port, chat(CANARY, ("x-canary", CANARY)))
    assert answer.status in (502, 503)
    assert CANARY not in front.output()
    assert "127.0.0.3" not in front.output()


def test_caddyfile_is_valid() -> None:
    """Caddy itself takes the Caddyfile, and refuses one with a slip in it."""
    command = [tool("caddy", "caddy"), "validate", "--adapter", "caddyfile", "--config", "-"]
    text = (DEPLOY / "compose" / "Caddyfile").read_text()
    slip = replaced(text, ("lb_policy", "lb_polcy"))
    for given, fits in ((text, True), (slip, False)):
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is fits, done.stderr
