"""The admin port over a real socket, with counters that a test moves by hand."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from freeapi.http.deadlines import Deadlines
from freeapi.http.server import Server, ServerLimits
from freeapi.metrics import Metrics
from freeapi.pages.admin import AdminPages
from freeapi.pages.course import Course
from freeapi.pages.gauges import watch_keys, watch_load, watch_money, watch_process
from freeapi.pages.operator import OperatorPages
from freeapi.policy.budget import Caps, Status
from freeapi.policy.keys import KeyPool
from tests.operator_view import to_host
from tests.pools import upstream_keys
from tests.raw_client import Answer, ask

#: 2026-11-23 12:00:30 UTC.
NOON_S = 1_795_435_230.0
LIMITS = ServerLimits(body_bytes_max=1_000, connections_max=50, connections_per_address_max=None)


class Instruments:
    """Counters, gauges and pages of one instance with two keys and $5 a day."""

    def __init__(self, clock: Callable[[], float] = lambda: NOON_S) -> None:
        self.metrics = Metrics(["chat", "models"], ["server_error"])
        self.metrics.allow(["gpt-a"], ["openai"])
        self.keys = KeyPool([upstream_keys("openai", ("AAAA", "BBBB"))], lambda: 0.0)
        self.left_nanousd = 3_000_000_000
        self.waiting = 2
        watch_process(self.metrics)
        watch_load(self.metrics, lambda: self.waiting, lambda: (4, 3))
        watch_keys(self.metrics, self.keys, lambda: {"gpt-a"}, lambda: 0.0)
        watch_money(
            self.metrics,
            lambda: Status(self.left_nanousd, 0, {"openai": 1_000_000_000}),
            lambda: Caps(daily_nanousd=5_000_000_000, upstream_daily_nanousd={"openai": 2 * 10**9}),
        )
        self.course = Course(self.metrics.collect)
        self.operator = OperatorPages(self.metrics.collect, self.course, clock)

    def answer(self, label: str = "ok", status: int = 200, model: str = "gpt-a") -> None:
        """Count a streamed answer: 500 tokens for 1 cent, first byte after 0.3 s, whole in 1.5."""
        self.metrics.started()
        self.metrics.streaming()
        self.metrics.finished(
            endpoint="chat",
            model=model,
            status=status,
            label=label,
            streamed=True,
            upstream="openai",
            tries=1,
            duration_s=1.5,
            first_byte_s=0.3,
            prompt_tokens=200,
            completion_tokens=300,
            request_bytes=400,
            response_bytes=9_000,
        )
        self.metrics.spent("openai", 10_000_000)

    def refuse(self, label: str = "rate_limit_exceeded", status: int = 429) -> None:
        """Count a request that never went upstream."""
        self.metrics.started()
        self.metrics.finished(endpoint="chat", model="gpt-a", status=status, label=label)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[int]:
        """The admin port's number, while it listens."""
        deadlines = Deadlines(asyncio.get_running_loop(), 1.0)
        pages = AdminPages(
            self.keys, {"gpt-a"}, lambda: 0.0, local_only=True, operator=self.operator
        )
        server = Server(pages, LIMITS, deadlines)
        try:
            yield (await server.listen("127.0.0.1", 0))[0][1]
        finally:
            await server.drain(0)
            deadlines.close()


def busy() -> Instruments:
    """Every metric has a value."""
    instruments = Instruments()
    instruments.answer()
    instruments.refuse()
    instruments.metrics.upstream_failed("openai", "server_error")
    instruments.metrics.watch("freeapi_event_loop_lag_seconds", lambda: 0.25)
    return instruments


def tool(name: str) -> str:
    """The command; tests that need it are skipped where it can't be had, except in CI."""
    command = shutil.which(name)
    if command is None:
        reason = f"{name} is missing (apt-get install prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return command


async def get(port: int, target: str, method: str = "GET", accept: str = "") -> Answer:
    """One answer of the admin port."""
    data = to_host("localhost", method, target)
    return await ask(port, data.replace(b"\r\n\r\n", f"\r\naccept: {accept}\r\n\r\n".encode()))
