"""A load under which something dies, and the bill of the upstream that saw it.

It is not the gateway's own arithmetic: the upstream bills an answer that was complete at what it
said, and any other request in full.
"""

from __future__ import annotations

import asyncio
import random

from tests.answers import answer, chat_json
from tests.money import ceiling_nanousd, cost_nanousd
from tests.raw_client import caller, chat
from tests.scripted_upstream import (
    PATIENCE_S,
    Exchange,
    Request,
    Script,
    ScriptedUpstream,
)

DEAR = chat(max_tokens=1_000)


class Biller:
    """An upstream that takes its time, and what it bills."""

    def __init__(self, upstream: ScriptedUpstream, chance: random.Random) -> None:
        self.upstream = upstream
        self.billed_nanousd = 0
        self._chance = chance
        upstream.script = self._serve

    def _serve(self, request: Request) -> Script:
        worst = ceiling_nanousd(request)
        self.billed_nanousd += worst
        used = 30, self._chance.randrange(1_000)
        turns = self._chance.randrange(30)

        async def settle(exchange: Exchange) -> None:
            for _ in range(turns):  # others get in between, and so does the kill
                await asyncio.sleep(0)
            await exchange.send(answer(200, chat_json("Hi", *used)))
            self.billed_nanousd += cost_nanousd(*used) - worst

        return [settle]


class Load:
    """Callers who ask and ask again until nobody answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._asked = 0
        self._news = asyncio.Event()

    async def caller(self) -> None:
        """One of them."""
        try:
            async with caller(self._port) as connection:
                while True:
                    await connection.send(DEAR)
                    self._asked += 1
                    self._news.set()
                    await connection.answer()
        except (OSError, EOFError):
            return

    async def reaches(self, count: int) -> None:
        """Wait until so many requests have been sent, answered in whichever way."""
        async with asyncio.timeout(PATIENCE_S):
            while self._asked < count:
                self._news.clear()
                await self._news.wait()
