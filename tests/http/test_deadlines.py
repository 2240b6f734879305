"""One sweep for all time-outs, and what it does to callers who are slow in every way.

The seconds are short, and no test waits for a time: each waits for what the time-out brings about.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from freeapi.http.deadlines import NEVER_S, Deadlines
from tests.http.conftest import TEXT, StartSite, hold, until
from tests.raw_client import request

GET = request("GET", "/a")
PART_OF_BODY = request("POST", "/p", ("content-length", "5")) + b"hell"


class Timed:
    """Something that expires, once."""

    def __init__(self, deadlines: Deadlines, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.expired_s = 0.0
        self._deadlines = deadlines

    def expire(self) -> None:
        """Note when."""
        self.expired_s = asyncio.get_running_loop().time()
        self._deadlines.discard(self)


async def test_sweep_is_late_by_a_quarter_at_most_and_never_early() -> None:
    """What is past its deadline expires soon after; the rest is left alone."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 0.08)
    begun_s = loop.time()
    soon, later, never = (Timed(deadlines, begun_s + s) for s in (0.05, 0.2, NEVER_S))
    for item in (soon, later, never):
        deadlines.add(item)
    await until(lambda: later.expired_s)
    assert begun_s + 0.05 <= soon.expired_s < later.expired_s
    assert later.expired_s >= begun_s + 0.2
    assert never.expired_s == 0
    deadlines.close()


async def test_a_shorter_time_out_makes_the_sweep_look_more_often() -> None:
    """Told of a new shortest time-out, it is late by a quarter of that at most."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 1_000.0)
    deadlines.heed(0.04)
    item = Timed(deadlines, loop.time())
    deadlines.add(item)
    await until(lambda: item.expired_s)  # by the other time-out it would take 250 s
    deadlines.close()


async def test_sweep_sleeps_while_nothing_is_watched() -> None:
    """An empty set costs no timer, and the next item starts the sweep again."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 0.04)
    first, second = Timed(deadlines, 0), Timed(deadlines, 0)
    deadlines.add(first)
    await until(lambda: first.expired_s and deadlines._timer is None)
    deadlines.add(second)
    await until(lambda: second.expired_s and deadlines._timer is None)
    deadlines.discard(second)


async def test_closed_sweep_expires_nothing() -> None:
    """After ``close`` no timer of it is left."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(loop, 0.04)
    forgotten, other = Timed(deadlines, 0), Deadlines(loop, 0.2)
    deadlines.add(forgotten)
    deadlines.close()
    witness = Timed(other, 0)
    other.add(witness)
    await until(lambda: witness.expired_s)  # at least one interval of the closed one later
    assert forgotten.expired_s == 0


@pytest.mark.parametrize("sent", [b"GET / HT", b"GET / HTTP/1.1\r\nx-a: b", b"\r\nGET"])
async def test_slow_head_is_refused(start_site: StartSite, sent: bytes) -> None:
    """A head that stays incomplete gets 408, also after an earlier request."""
    site = await start_site(shortest_s=0.05, head_s=0.1)
    async with site.caller() as caller:
        await caller.ask(GET)
        assert (await caller.ask(sent)).status == 408
        assert await caller.closed() == b""
    assert site.refused == ["request_timeout"]


async def test_slow_body_is_refused(start_site: StartSite) -> None:
    """A body that stays incomplete gets 408."""
    site = await start_site(shortest_s=0.05, body_s=0.1)
    async with site.caller() as caller:
        assert (await caller.ask(PART_OF_BODY)).status == 408
        assert await caller.closed() == b""
    assert site.calls == []


async def test_slow_body_behind_a_known_head_is_refused(start_site: StartSite) -> None:
    """The same where the head has come before."""
    site = await start_site(shortest_s=0.05, body_s=0.1)
    async with site.caller() as caller:
        for _ in range(2):
            await caller.ask(PART_OF_BODY + b"o")
        assert (await caller.ask(PART_OF_BODY)).status == 408
        assert await caller.closed() == b""
    assert len(site.calls) == 2


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nx-a: ", PART_OF_BODY[:-4]])
async def test_dripping_caller_is_refused(start_site: StartSite, start: bytes) -> None:
    """A byte now and then doesn't buy more time, neither for a head nor for a body."""
    site = await start_site(shortest_s=0.05, head_s=0.15, body_s=0.15)
    start = start.replace(b": 5\r", b": 500000\r")
    async with site.caller() as caller:
        await caller.send(start)
        while not site.refused:
            await caller.send(b"a")
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await caller.head()
    assert site.refused == ["request_timeout"]
    assert site.calls == []


@pytest.mark.parametrize("before", [b"", GET])
async def test_idle_connection_is_closed(start_site: StartSite, before: bytes) -> None:
    """Who asks nothing, at first or any more, is disconnected without a word."""
    site = await start_site(shortest_s=0.05, head_s=0.1, keep_alive_s=0.1)
    async with site.caller() as caller:
        if before:
            await caller.ask(before)
        assert await caller.closed() == b""
    assert site.refused == []


async def test_answer_may_take_longer_than_any_deadline_of_the_caller(
    start_site: StartSite,
) -> None:
    """While the application works, the caller isn't timed out."""
    site = await start_site(hold, shortest_s=0.04, head_s=0.04, body_s=0.04, keep_alive_s=0.04)
    quick = await start_site(shortest_s=0.04, keep_alive_s=0.2)
    async with site.caller() as caller, quick.caller() as clock:
        await caller.send(GET)
        await clock.ask(GET)
        await clock.closed()  # 0.2 s later
        (await site.reply()).send(200, TEXT, b"late")
        assert (await caller.answer()).body == b"late"


async def test_slow_reader_is_cut(start_site: StartSite) -> None:
    """Who takes nothing of its answer for ``stalled_s`` loses the connection; it is gone then."""
    site = await start_site(hold, shortest_s=0.05, stalled_s=0.1)
    with socket.create_connection(("127.0.0.1", site.port)) as quiet:
        quiet.sendall(GET)
        reply = await site.reply()
        reply.start(200, TEXT, None)
        reply.write(b"a" * 20_000_000)
        await until(lambda: site.gone)
    await until(lambda: not site.connections)
