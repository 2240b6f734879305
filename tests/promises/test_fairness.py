"""Promise: when capacity is short, no caller can starve another.

The model's limit lets 40 requests a second through; callers ask again as soon as they are answered.
Nobody's own limits are on: what keeps a flood from the others is the queue alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.conftest import StartGateway
from tests.crowd import OPEN_DOOR, ask_from, caller_from
from tests.gateway import Gateway
from tests.raw_client import chat
from tests.scripted_upstream import ScriptedUpstream

RPM = 2_400
#: What a bucket that was idle lets through at once.
BURST = RPM // 6
CALLERS = [f"127.0.2.{number}" for number in range(1, 11)]
#: Answers that are counted: three seconds' worth.
COUNTED = 120
#: The longest that a test of three seconds may take on a busy machine.
COUNTED_MAX_S = 30.0
SETTINGS = {"FREEAPI_QUEUE_S": "30", **OPEN_DOOR}


class Contest:
    """Callers in closed loops, and how often each was answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._served: Counter[str] = Counter()
        #: Somebody was refused.
        self._is_short = False
        self._news = asyncio.Condition()

    async def _ask(self, address: str) -> None:
        """One loop: whoever is refused tries again when something has moved."""
        async with caller_from(address, self._port) as connection:
            while True:
                status = (await connection.ask(chat())).status
                assert status in (200, 429)
                async with self._news:
                    if status == 200:
                        self._served[address] += 1
                        self._news.notify_all()
                    else:
                        if not self._is_short:
                            self._is_short = True
                            self._news.notify_all()
                        await self._news.wait()

    @asynccontextmanager
    async def between(self, loops: dict[str, int]) -> AsyncIterator[None]:
        """Each address asks in so many loops at once, as long as the block lasts."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._ask(address))
            for address, count in loops.items()
            for _ in range(count)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def is_short(self) -> None:
        """Until a flood's ninth is refused: what had gathered is used up, and all wait."""
        async with asyncio.timeout(COUNTED_MAX_S), self._news:
            await self._news.wait_for(lambda: self._is_short)

    async def shares(self) -> Counter[str]:
        """Who had how many of the next answers, once capacity is short and all have had one."""
        await self.is_short()
        async with asyncio.timeout(COUNTED_MAX_S), self._news:
            start = self._served.copy()
            await self._news.wait_for(lambda: len(self._served - start) == len(CALLERS))
            start = self._served.copy()
            await self._news.wait_for(lambda: self._served.total() >= start.total() + COUNTED)
            return self._served - start


async def use_up(gateway: Gateway, upstream: ScriptedUpstream) -> None:
    """Take what gathered while nobody asked."""
    loop = asyncio.get_running_loop()
    for _ in range(BURST // 100):
        tasks = [loop.create_task(ask_from("127.0.3.1", gateway.port, chat())) for _ in range(100)]
        await asyncio.gather(*tasks)
    assert len(upstream.requests) == BURST


async def test_a_flood_takes_nothing_from_others(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Beside 50 concurrent requests of one, each of nine with one gets 90 % of its equal share."""
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    await use_up(gateway, upstream)
    contest = Contest(gateway.port)
    flood, *others = CALLERS
    async with contest.between({flood: 50, **dict.fromkeys(others, 1)}):
        shares = await contest.shares()
    assert min(shares[address] for address in others) >= 0.9 * COUNTED / len(CALLERS), shares
    # Nor is the flood punished.
    assert shares[flood] >= 0.9 * COUNTED / len(CALLERS), shares


async def test_floods_get_the_same(upstream: ScriptedUpstream, start_gateway: StartGateway) -> None:
    """Jain's index of ten callers with twelve concurrent requests each is 0.98 or more."""
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    await use_up(gateway, upstream)
    contest = Contest(gateway.port)
    async with contest.between(dict.fromkeys(CALLERS, 12)):
        shares = await contest.shares()
    squares = sum(count * count for count in shares.values())
    assert shares.total() ** 2 / (len(CALLERS) * squares) >= 0.98, shares


async def test_a_newcomer_does_not_wait_for_a_flood(
    upstream: ScriptedUpstream, start_gateway: StartGateway
) -> None:
    """Who comes while nine floods wait is answered within two turns of each of them."""
    gateway = await start_gateway(f"rpm = {RPM}\n", **SETTINGS)
    await use_up(gateway, upstream)
    contest = Contest(gateway.port)
    newcomer, *floods = CALLERS
    async with contest.between(dict.fromkeys(floods, 12)):
        await contest.is_short()
        for _ in range(3):
            before = len(upstream.requests)
            assert (await ask_from(newcomer, gateway.port, chat())).status == 200
            assert len(upstream.requests) - before <= 2 * len(CALLERS)
