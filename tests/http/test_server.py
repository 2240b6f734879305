"""The public port: admission, what every answer carries, and the end of it all."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.http.conftest import TEXT, Site, StartSite, hold, until
from tests.raw_client import request
from tests.scripted_upstream import PATIENCE_S

GET = request("GET", "/a")


@pytest.mark.parametrize("limits", [{"connections_max": 2}, {"per_address_max": 2}])
async def test_one_connection_too_many_is_refused(
    start_site: StartSite, limits: dict[str, int]
) -> None:
    """It gets 429 and is closed, whatever it says; the next is let in when one has left."""
    site = await start_site(**limits)
    async with site.caller() as first, site.caller() as second:
        await first.ask(GET)
        await second.ask(GET)
        async with site.caller() as third:
            answer = await third.ask(GET)
            assert (answer.status, answer.error()["code"]) == (429, "capacity_exceeded")
            assert await third.closed() == b""
        assert (await first.ask(GET)).status == 200
        await until(lambda: site.connections == 2)
        second.close()
        await until(lambda: site.connections == 1)
        async with site.caller() as fourth:
            assert (await fourth.ask(GET)).status == 200
    assert site.refused == ["capacity_exceeded"]
    assert len(site.calls) == 4
    await until(lambda: not site.connections)
    assert site.server._per_address == {}


async def test_refused_connection_is_told_when_to_return(start_site: StartSite) -> None:
    """The 429 of a full server carries ``retry-after``, so that SDKs wait."""
    site = await start_site(connections_max=0)
    async with site.caller() as caller:
        refused = await caller.ask(GET)
        waits = refused.header("retry-after"), refused.header("retry-after-ms")
        assert waits == ("1", "1000")


async def test_every_answer_carries_the_common_headers(site: Site) -> None:
    """Date, the server's own headers, and an id that differs each time."""
    async with site.caller() as caller:
        answers = [await caller.ask(GET), await caller.ask(GET)]
        await caller.send(b"nonsense\r\n\r\n")
        answers.append(await caller.answer())
    assert all(answer.header("server") == "freeapi" for answer in answers)
    assert all((answer.header("date") or "").endswith(" GMT") for answer in answers)
    ids = {answer.header("x-request-id") for answer in answers}
    assert len(ids) == 3
    assert all(re.fullmatch(r"req_[0-9a-f]{16}", id_ or "") for id_ in ids)


async def test_date_is_kept_fresh(start_site: StartSite) -> None:
    """The Date header is made anew by the sweep."""
    site = await start_site(shortest_s=0.05)
    site.server.common_headers = b""
    site.server.deadline_s = 0
    await until(lambda: site.server.common_headers.startswith(b"date: "))
    assert site.server.deadline_s > site.server.loop.time()


async def test_address_in_use_is_told(site: Site) -> None:
    """A port that is taken raises OSError."""
    with pytest.raises(OSError, match="in use"):
        await site.server.listen("127.0.0.1", site.port)


async def test_drain_closes_idle_connections_at_once(site: Site) -> None:
    """Connections without a request end, and so does ``drain``, long before its limit."""
    async with site.caller() as used, site.caller() as fresh:
        await used.ask(GET)
        await until(lambda: site.connections == 2)
        async with asyncio.timeout(PATIENCE_S):
            await site.server.drain(3600)
        assert await used.closed() == b""
        assert await fresh.closed() == b""


async def test_drained_server_accepts_no_more(site: Site) -> None:
    """A new connection is refused by the kernel."""
    await site.server.drain(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", site.port)


async def test_drain_lets_answers_finish(start_site: StartSite) -> None:
    """An open answer is completed, then its connection closes and ``drain`` returns."""
    site = await start_site(hold)
    async with site.caller() as streaming, site.caller() as waiting:
        await streaming.send(GET)
        (await site.reply(0)).start(200, TEXT, None)
        await waiting.send(GET)
        await site.reply(1)
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            drained = group.create_task(site.server.drain(3600))
            await until(lambda: site.server.draining)
            site.calls[1][1].send(200, TEXT, b"whole")
            answer = await waiting.answer()
            assert (answer.body, answer.header("connection")) == (b"whole", "close")
            assert not drained.done()
            site.calls[0][1].write(b"streamed")
            site.calls[0][1].end()
            assert (await streaming.answer()).body == b"streamed"
            assert await streaming.closed() == b""
    assert site.gone == []


@pytest.mark.parametrize("begun", [b"GET /a HT", request("POST", "/", ("content-length", "2"))])
async def test_drain_lets_a_request_arrive(site: Site, begun: bytes) -> None:
    """A request that is half received when the drain begins is still answered."""
    async with site.caller() as caller:
        await caller.send(begun)
        await until(lambda: site.connections)
        server_side = next(iter(site.server._connections))
        await until(lambda: server_side._waiting_bytes or server_side._head_done)
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            group.create_task(site.server.drain(3600))
            await until(lambda: site.server.draining)
            await caller.send(b"{}" if begun.startswith(b"POST") else GET[9:])
            answer = await caller.answer()
    assert (answer.status, answer.header("connection")) == (200, "close")


async def test_drain_cuts_at_its_limit(start_site: StartSite) -> None:
    """What isn't finished in time is cut, and its application told."""
    site = await start_site(hold)
    async with site.caller() as caller:
        await caller.send(GET)
        (await site.reply()).start(200, TEXT, None)
        async with asyncio.timeout(PATIENCE_S):
            await site.server.drain(0.05)
        assert not (await caller.answer()).complete
        await until(lambda: site.gone == [0])
