"""Callers in closed loops, who compete for what is short, and how often each was answered.

Each asks again as soon as it is answered; whoever is refused tries again when something has moved.
The gateways may be several: then a caller's loops are spread over them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.crowd import caller_from
from tests.raw_client import chat

CALLERS = [f"127.0.2.{number}" for number in range(1, 11)]
#: Answers that are counted.
COUNTED = 120
#: The longest that a test of three seconds may take on a busy machine.
COUNTED_MAX_S = 30.0


class Contest:
    """One contest."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self._served: Counter[str] = Counter()
        #: Somebody was refused.
        self._is_short = False
        self._news = asyncio.Condition()

    async def _ask(self, address: str, port: int) -> None:
        async with caller_from(address, port) as connection:
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
        async with asyncio.TaskGroup() as group:  # so that a loop that fails ends the contest
            tasks = [
                group.create_task(self._ask(address, self._ports[(first + one) % len(self._ports)]))
                for first, (address, count) in enumerate(loops.items())
                for one in range(count)
            ]
            yield
            for task in tasks:
                task.cancel()

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


def jain(shares: Counter[str]) -> float:
    """How equal they are: 1 if all are the same, 1/n if one has all. Source: R. Jain, 1984."""
    return shares.total() ** 2 / (len(shares) * sum(count * count for count in shares.values()))
